import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Collapse onset")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fortifai_ray.metrics import metric
    from fortifai_ray.report import tables
    from fortifai_ray.report.charts.curves import collapse_curves
    from fortifai_ray.report.charts.onset import onset_chart, ratio_chart
    from fortifai_ray.results.words import fi_unit
    from fortifai_ray.statistics.conclusions import conclusions
    from fortifai_ray.statistics.criterion import criterion_rows
    from fortifai_ray.statistics.fidelity import fi_units
    from support import controls, survival

    DATA = Path(__file__).parent / "data"


@app.cell(hide_code=True)
def introduction():
    mo.md(r"""
    # When does it collapse, and what delays it?

    A chain is *faithful* until its metric crosses the collapse criterion and stays across it. That generation is its
    *onset*, and the time until then its *fidelity interval* (FI). This notebook shows the metric's curves, the onsets,
    the share of chains that are still faithful (Kaplan–Meier, so that chains that never collapsed count as censored),
    each loss's FI as a ratio to the baseline's, and how that ratio depends on the criterion. Every number belongs to
    the criterion picked.

    To see your own study, give its folder, `STORAGE/NAME`, or its MLflow experiment; or start with
    `marimo edit analysis/collapse_onset.py -- --results FOLDER`.
    """)
    return


@app.cell(hide_code=True)
def pick():
    picked = controls.picker(DATA, "mixture", mo.cli_args())
    controls.layout(picked)
    return (picked,)


@app.cell(hide_code=True)
def open_results(picked):
    results = controls.opened(picked.value, DATA)
    controls.about(results)
    return (results,)


@app.cell(hide_code=True)
def pick_criterion(results):
    criterion_picker = controls.criterion_picker(results)
    unit_picker = controls.choice(fi_units(results.chains), "time in")
    mo.hstack([criterion_picker, unit_picker], widths=[3, 1])
    return criterion_picker, unit_picker


@app.cell(hide_code=True)
def choices(criterion_picker, unit_picker):
    criterion, unit = criterion_picker.value, unit_picker.value
    return criterion, unit


@app.cell(hide_code=True)
def about_curves(criterion):
    controls.heading(
        f"{', '.join(metric(_member.metric).title for _member in criterion.members)} by generation",
        "Thick: median over seeds; band: lowest to highest seed (5 to 95 % quantiles above 12 seeds), as far as every "
        "chain has a value. Dashed: the criterion's limit. Click a name to highlight it.",
    )
    return


@app.cell(hide_code=True)
def show_curves(criterion, results):
    _table = results.generations
    mo.vstack(
        controls.drawn(
            collapse_curves(_table, results.chains, _name, results.cells, criteria=[criterion])
            if _name in _table.columns and _table[_name].count() > 0
            else f"{_name} was not measured in this study."
        )
        for _name in dict.fromkeys(_member.metric for _member in criterion.members)
    )
    return


@app.cell(hide_code=True)
def about_onsets():
    mo.md(r"""
    ### Onset of each chain

    <small>Filled: collapsed there. Open triangle: censored, not collapsed by its last generation. Bar: Kaplan–Meier
    median.</small>
    """)
    return


@app.cell(hide_code=True)
def show_onsets(criterion, results):
    _medians = tables.median_intervals(results, criterion)
    controls.drawn(
        onset_chart(results.chains, criterion, results.cells, medians=_medians)
        or "No chain has a verdict under this criterion: there are no onsets."
    )
    return


@app.cell(hide_code=True)
def about_survival():
    mo.md(r"""
    ### Chains that are still faithful

    <small>Kaplan–Meier, with a pointwise 90 % band, undefined before the first collapse and after the last chain.
    Vertical stroke: a chain was censored there.</small>
    """)
    return


@app.cell(hide_code=True)
def show_survival(criterion, results, unit):
    _table = survival.survival_table(results.chains, criterion, results.cells, unit)
    controls.drawn(
        survival.survival_chart(_table, results.cells, time=fi_unit(unit, results.unit))
        or "No chain has a verdict under this criterion: there is no survival curve."
    )
    return


@app.cell(hide_code=True)
def about_tests():
    mo.md(r"""
    ### Log-rank tests against the baseline

    <small>Two-sided, in generations, not paired by seed; adjusted for the number of cells tested under this
    criterion.</small>
    """)
    return


@app.cell(hide_code=True)
def show_tests(criterion, results):
    _nothing = "There is nothing to test: no baseline, no other cell, or no collapse."
    controls.table(survival.logrank_rows(results, criterion), _nothing)
    return


@app.cell(hide_code=True)
def about_fidelity():
    mo.md(r"""
    ### Fidelity intervals, and their ratios to the baseline

    <small>In the chart, large: all seeds, with the 90 % interval from three pairs on (docs/statistics.md); where chains
    are censored, all of them are in the estimate, by a log-normal model or, from 30 pairs on, by the median pair.
    Small: single seeds. ▷ or ≥: at least; ◁ or ≤: at most.</small>
    """)
    return


@app.cell(hide_code=True)
def show_fidelity(criterion, results):
    _rows = [dict(zip(tables.HEADINGS, row.texts, strict=True)) for row in tables.fidelity_rows(results, criterion)]
    controls.table(_rows, "No chain has a verdict to summarise.")
    return


@app.cell(hide_code=True)
def show_ratios(criterion, results, unit):
    controls.drawn(
        ratio_chart(results.fidelity, criterion, results.cells, unit)
        or "No cell has a ratio to the baseline under this criterion: the conclusions below say why."
    )
    return


@app.cell(hide_code=True)
def about_profile():
    mo.md(r"""
    ### The ratio depends on what counts as collapse

    <small>The same chains under every threshold from just beyond generation 0 to full collapse. Band: pointwise 90 %
    interval. ▲: at least, ▼: at most, because chains that stopped at their collapse have no data beyond it
    (`early_stopping: false` lets them continue). Dashed: the threshold picked above.</small>
    """)
    return


@app.cell(hide_code=True)
def show_profile(criterion, results):
    controls.drawn(survival.profile(results, criterion))
    return


@app.cell(hide_code=True)
def show_conclusions(criterion, results):
    _rows = criterion_rows(criterion)
    _found = conclusions(results.fidelity.filter(_rows), results.chains.filter(_rows))
    _lines = [part for one in _found for part in (mo.md(f"Under {one.criterion}:"), controls.sentences(one.sentences))]
    mo.vstack([mo.md("### What can be concluded"), *_lines])
    return


if __name__ == "__main__":
    app.run()
