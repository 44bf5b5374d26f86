"""The text of a new project's policy.toml: what each threshold means, and its value for each task.

policy.py fills the template in and reads the result; settling_policy.py and approval.py have the text of their tables.
"""

from collections.abc import Mapping

from schemas.targets import Task

TEMPLATE = """# Thresholds of the gates. A gate with blocking = false only advises.
# Every report shows the values that it was judged by, and each value that changed since the round before.

[data]
blocking = true
# The smallest reference set: with fewer rows, a better model cannot be told from chance.
min_judge_rows = 100
# The largest share of people in quarantine. More of them points to an attack or a bug.
max_quarantined_people_share = 0.5
# Reference rows that may also be training rows. There is no good reason for one.
max_leaked_rows = 0
# The largest population stability index of the labels; above 0.25 is called a major shift. It only advises: rounds exist to
# follow shifts.
max_drift = 0.25

[superiority]
blocking = true
# The metric that has to improve:
#   accuracy_or_brier  accuracy or the Brier score, whichever shows it; the joint test pays for looking at both
#   accuracy           exact one-sided McNemar test; a multilabel row is right if all its labels are
#   nll, brier         paired test, which detects more with the same rows
#   macro_f1           paired bootstrap
#   micro_f1           the same, for multilabel. The metric also chooses the thresholds from which a multilabel model answers a
#                      label: by accuracy, macro F1 or, for any other metric, micro F1
# Regression has nll; any other value means the mean squared error. Generation has nll, per token of the reference answer; any
# other value means chrF.
metric = "$metric"
# The chance, over all rounds against one champion, that one of them promotes a candidate without a gain. Labels spend their share
# ([settling]). Of the rest a third is for the first look at the reference set, 40 % for looks 2 to 20 in equal parts, 7 % for all
# later ones, and 20 % for looks that bring rows on which this champion was never judged (docs/evidence.md).
alpha = 0.05

[non_inferiority]
blocking = true
# The main metric may be lower than the champion's by less than this, with 95 % confidence. The main metric is accuracy; for
# multilabel, micro F1; for regression, the relative change of the mean squared error; for generation, chrF. Superiority in the
# main metric implies it.
margin = $margin
# The chance, over all rounds against one champion, that a loss beyond the margin passes; in a single round at most 0.05.
alpha = 0.1

[slices]
blocking = true
# A slice is a metadata value or a label. It stops a candidate if a loss of more than `margin` has a probability above `likely`.
margin = $margin
likely = 0.8
# A slice with fewer rows only advises: ten small slices would stop every second candidate that is equal to the champion. It
# still stops a candidate if the loss is significant at `alpha`, with Holm's correction over all slices.
min_rows = 200
alpha = 0.05

[flips]
blocking = true
# The largest share of rows that the champion has right and the candidate wrong, at 95 % confidence. People notice such rows,
# even if more rows improved. All rows of gates.must_pass have to be right.
max_share = 0.1

[calibration]
blocking = true
# How often a candidate that is as calibrated and as good as the champion is stopped by mean confidence, NLL, Brier score and
# coverage together.
alpha = 0.01
# ECE has to stay below this value, or below 1.1 times the 99th percentile of a calibrated model with a map fitted on n rows.
ece_floor = 0.02
# The coverage at which prediction sets or intervals are checked.
coverage = 0.95

[forgetting]
blocking = true
# Labels that are missing from the newest `recent_rows` feedback rows are judged together, as one slice.
recent_rows = 500

[robustness]
# It advises: that made-up edits change a prediction is no evidence that users are harmed.
blocking = false
# The largest share of predictions that typos, case, white space and padding may change; the champion's share, if that is
# larger. A generated text counts as changed if its tokens become less than half as likely.
max_flips = 0.1
# How many reference rows are edited, each in every way; the same in every round.
rows = $edited

[baseline]
blocking = true
# The candidate may be worse than a cheap baseline by at most this. The baseline is a linear probe on frozen embeddings or TF-IDF
# with a linear model, whichever is better; for generation, the answer of the most similar training row (chrF). There a first
# model that writes worse needs a person.
margin = $margin

[serving]
blocking = true
# Limits of the artefact in a fresh process: median time for one text (milliseconds), memory of the whole process and size on
# disk (MB).
max_latency_ms = $latency
max_memory_mb = 4000
max_size_mb = 4000

[bootstrap]
blocking = true
# The first model has no champion to beat. It has to beat a constant prediction by this: in accuracy, or in macro F1 where more
# than 90 % of the reference rows have one label; for multilabel in micro F1.
min_gain_over_majority = 0.02

[compressed]
blocking = true
# A compressed artefact (int8) against the full-precision model of the same round, on the same rows: the smallest share of equal
# predictions, and by how much accuracy and NLL may be worse, with 95 % confidence.
min_agreement = 0.985
# The same share for a distilled student: another model, whose errors may differ without being more.
min_student_agreement = 0.95
accuracy_margin = 0.02
nll_margin = 0.02
"""

VALUES = {"metric": "accuracy_or_brier", "margin": "0.01", "edited": "500", "latency": "500"}
# Generated texts vary more between models than labels do: 200 rows give chrF to about 0.03. A text takes seconds.
VALUES_OF_TASK: Mapping[Task, Mapping[str, str]] = {
    "multilabel": {"metric": "micro_f1"},
    "generation": {"metric": "nll", "margin": "0.05", "edited": "25", "latency": "30000"},
}
