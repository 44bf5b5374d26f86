"""Pipelines learn: from stored events to a judged candidate.

training_round.py is the round as one straight line: dataset, training, export, calibration, evaluation, gates,
promotion. A killed round resumes where its files stand. candidates.py makes the candidate's folder, whose manifest is
written last; triggers.py decides when a round is due. Each step is a room below; steps never call each other.
"""
