import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Phase diagram")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fortifai_ray.errors import UserError
    from support import controls, phase

    DATA = Path(__file__).parent / "data"


@app.cell(hide_code=True)
def introduction():
    mo.md(r"""
    # Where does it collapse?

    The plane of two keys that a study varies, such as γ and the synthetic ratio *r*, or the sampling temperature and
    *r*: the share of chains that collapses within the horizon at each point, and the boundary at which half of them
    do, for each loss. The boundary is the search's where the study searched for it (`collapse_points.parquet`);
    otherwise it is read off the grid, and labelled so.

    To see your own study, give its folder, `STORAGE/NAME`, or its MLflow experiment; or start with
    `marimo edit analysis/phase_diagram.py -- --results FOLDER`.
    """)
    return


@app.cell(hide_code=True)
def pick():
    picked = controls.picker(DATA, "plane", mo.cli_args())
    controls.layout(picked)
    return (picked,)


@app.cell(hide_code=True)
def open_results(picked):
    results = controls.opened(picked.value, DATA, compares=False)
    controls.about(results)
    return (results,)


@app.cell(hide_code=True)
def find_keys(results):
    try:
        keys = phase.numeric_keys(results)
    except UserError as _error:
        controls.stop(str(_error))
    if not keys:
        controls.stop(
            f"{results.name} varies no numeric key other than the seed: there is no plane to draw. Vary "
            "regime.synthetic_ratio, loss.gamma or decoding.temperature."
        )
    return (keys,)


@app.cell(hide_code=True)
def pick_plane(keys, results):
    criterion_picker = controls.criterion_picker(results)
    x_picker = controls.choice(keys, "across")
    y_picker = controls.choice([*keys[1:], keys[0]], "upwards") if len(keys) > 1 else None
    mo.vstack([criterion_picker, mo.hstack([x_picker] if y_picker is None else [x_picker, y_picker], justify="start")])
    return criterion_picker, x_picker, y_picker


@app.cell(hide_code=True)
def judge(criterion_picker, results, x_picker, y_picker):
    criterion = criterion_picker.value
    try:
        plane = phase.plane(results, criterion, x_picker.value, y_picker.value if y_picker is not None else None)
    except UserError as _error:
        controls.stop(str(_error))
    return criterion, plane


@app.cell(hide_code=True)
def about_plane(criterion):
    controls.heading(
        f"Collapsed within the horizon: {criterion.words}",
        "Tiles: white where no chain collapsed, dark where all did. Orange: where half of them do, with its 90 % "
        "interval; a triangle points towards a boundary that lies beyond it. Point at a tile for its counts.",
    )
    return


@app.cell(hide_code=True)
def show_plane(plane):
    controls.drawn(phase.phase_chart(plane))
    return


@app.cell(hide_code=True)
def about_boundaries():
    mo.md(r"""
    ### The boundary

    <small>90 % intervals. Chains that ended in an unconfirmed crossing count as not collapsed within their horizon;
    chains without a verdict are left out.</small>
    """)
    return


@app.cell(hide_code=True)
def show_boundaries(plane):
    controls.table(phase.boundary_rows(plane), "There is no boundary to show.")
    return


@app.cell(hide_code=True)
def about_tolerance():
    mo.md(r"""
    ### How much more synthetic data each loss tolerates

    <small>The critical value over the baseline's, with an interval made from both cells' intervals (MOVER). Only for a
    study that searched for the boundary (`search: {kind: boundary, …}`).</small>
    """)
    return


@app.cell(hide_code=True)
def show_tolerance(criterion, results, x_picker):
    controls.table(
        phase.tolerated_rows(phase.tolerated(results, criterion, x_picker.value)),
        f"This study did not search over {x_picker.value} under this criterion.",
    )
    return


if __name__ == "__main__":
    app.run()
