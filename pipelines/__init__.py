"""Pipelines learn: from stored events to a judged candidate.

training_round.py calls the steps of a round in order: dataset, candidate, judgement, promotion; a killed round resumes.
round_inputs.py opens what every step reads. candidates.py makes the candidate's folder, whose manifest is written last.
round_judgement.py evaluates it and applies the gates. round_settling.py
queues the texts on which it and the champion disagree. triggers.py decides when a round is due.
"""
