"""Privacy: personal data in texts is found and replaced before anything is kept.

anonymise.py replaces e-mail addresses, phone and card numbers, IBANs, IP addresses and links by tags such as
`<EMAIL>`; national_ids.py knows the check digits of national identity numbers. Both are compiled patterns behind a
cheap filter, as they run on every request. Names and street addresses are not found here.
"""
