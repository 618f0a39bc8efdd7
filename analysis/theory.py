import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Theory against measurement")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from support import controls, theory

    DATA = Path(__file__).parent / "data"


@app.cell(hide_code=True)
def introduction():
    mo.md(r"""
    # Theory against measurement

    Families that are fitted in closed form collapse as closed forms predict. Points: the mean (or the variance) over
    seeds with its 90 % interval; lines: what `fortifai_ray.theory` derives for the same recipe, with nothing fitted.
    Their agreement checks that the platform measures what it claims to measure.

    To see your own study, give its folder, `STORAGE/NAME`, or its MLflow experiment; or start with
    `marimo edit analysis/theory.py -- --results FOLDER`.
    """)
    return


@app.cell(hide_code=True)
def pick():
    picked = controls.picker(DATA, "regimes", mo.cli_args())
    controls.layout(picked)
    return (picked,)


@app.cell(hide_code=True)
def open_results(picked):
    results = controls.opened(picked.value, DATA)
    controls.about(results)
    return (results,)


@app.cell(hide_code=True)
def compare(results):
    table, missing = theory.comparison(results)
    if table.is_empty():
        controls.stop(" ".join(missing) or "There is nothing to compare.")
    controls.sentences(missing) if missing else None
    return (table,)


@app.cell(hide_code=True)
def about_overlays():
    mo.md(r"""
    ### Measured and derived

    <small>Lines: the closed form, dashed where it holds only in a limit. Bars: 90 % intervals (Student's t over seeds,
    corrected for skewness). Below each: measurement minus theory, in standard errors; grey: where nine in ten should
    lie. The generations of a chain depend on each other, so neighbouring points deviate together.</small>
    """)
    return


@app.cell(hide_code=True)
def show_overlays(results, table):
    theory.overlays(table, results)
    return


@app.cell(hide_code=True)
def about_agreement():
    mo.md(r"""
    ### How well they agree

    <small>A mean over few chains misses what a rare chain contributes: under replace, the mean of a variance can be
    measured up to about n/2 generations; the mean of its logarithm has no such limit. Claims in the study file test
    such equalities at a level of their own (`fortifai claims`).</small>
    """)
    return


@app.cell(hide_code=True)
def show_agreement(table):
    controls.table(theory.agreement(table), "There is nothing to compare.")
    return


if __name__ == "__main__":
    app.run()
