"""What answers are worth: pure functions over queries and texts, no engine and no file.

    judging      one answer, read strictly, against its query's acceptable plans
    planning     the strict figures of one answer a query: accuracy, per-action scores, confusions, safety
    safety       what a wrong plan costs; brakes missed, brakes for nothing, turns to the wrong side
    variety      the figures of K sampled answers a query: pass@k, distinct plans, entropy
    choice       one plan out of K samples: majority vote, risk-averse
    reasoning    BLEU-4, CIDEr-D (`cider`) and METEOR of the reasoning
    pairs        counterfactual pairs, right only when both answers are
    released     the rule of the paper's released evaluation, kept apart from the strict figures
    trajectory   ADE of stated trajectories
    statistics   bootstrap intervals

`alphadrive.eval_figures` puts them together for `alphadrive eval`; training logs the planning figures.
"""
