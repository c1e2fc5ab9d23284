"""Where the time of a run goes: spans, one clock, a timeline, an analysis and a verdict.

    spans          what a process records: name, start, end; nothing when profiling is off
    clocks         how far another machine's clock is from the driver's
    span_file      spans.jsonl in the run's folder, written as the run goes on
    recording      what was read back of it
    timeline       timeline.json for Perfetto and Chrome
    intervals      sets of moments
    states         what every worker did or waited for at each moment
    analysis       shares, rates, the critical path of a step
    verdict        what limits the run, in words
    report, plot   all of it as text and as a picture

Pure, but for `spans` and `span_file`. The driver collects spans by `cluster.profiler`.
"""
