"""Privacy: personal data in texts is replaced by placeholders before anything is stored.

anonymise.py replaces e-mail addresses, phone and card numbers, IBANs, IP addresses and credentials in URLs by placeholders
such as `<EMAIL>`; national_ids.py replaces national identity numbers. Both use compiled patterns behind a cheap filter,
because they run on every request. Names and street addresses are not replaced.
"""
