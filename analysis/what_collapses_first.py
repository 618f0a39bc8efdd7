import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="What collapses first")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fortifai_ray.errors import UserError
    from support import controls, signs

    DATA = Path(__file__).parent / "data"
    SHARES = [round(0.05 * step, 2) for step in range(1, 20)]


@app.cell(hide_code=True)
def introduction():
    mo.md(r"""
    # What collapses first?

    Tails, facts, grammar, repetition: the signs of collapse side by side, on one scale. The *fidelity left* is 1 at
    the chain's own generation 0 and 0 where everything is lost: the value over generation 0's (both beyond chance where
    guessing scores something), or generation 0's over the value where collapse moves the metric up. A sign is *lost*
    once less than the share picked below is left and stays left. Which sign goes first can depend on that share, so the
    last chart shows the order for all shares.

    To see your own study, give its folder, `STORAGE/NAME`, or its MLflow experiment; or start with
    `marimo edit analysis/what_collapses_first.py -- --results FOLDER`.
    """)
    return


@app.cell(hide_code=True)
def pick():
    picked = controls.picker(DATA, "language", mo.cli_args())
    controls.layout(picked)
    return (picked,)


@app.cell(hide_code=True)
def open_results(picked):
    results = controls.opened(picked.value, DATA)
    controls.about(results)
    return (results,)


@app.cell(hide_code=True)
def find_signs(results):
    candidates, refused = signs.signs(results)
    if not candidates:
        controls.stop(
            f"{results.name} has no metric with a known direction of collapse: there is no scale to put it on."
        )
    (controls.sentences(list(refused.values())) if refused else None)
    return (candidates,)


@app.cell(hide_code=True)
def pick_signs(candidates):
    sign_picker = mo.ui.multiselect(
        {sign.name: sign for sign in candidates},
        value=[sign.name for sign in signs.first_choice(candidates)],
        label="signs",
        full_width=True,
    )
    share_picker = mo.ui.slider(steps=SHARES, value=0.5, label="lost: less than this share is left", show_value=True)
    mo.vstack([sign_picker, share_picker])
    return share_picker, sign_picker


@app.cell(hide_code=True)
def judge(results, share_picker, sign_picker):
    chosen, share = sign_picker.value, share_picker.value
    if not chosen:
        controls.stop("No sign is picked.")
    try:
        lost = signs.losses(results, chosen, [share])
        by_share = signs.losses(results, chosen, SHARES)
    except (UserError, ValueError) as _error:
        controls.stop(str(_error))
    return by_share, chosen, lost, share


@app.cell(hide_code=True)
def about_curves():
    mo.md(r"""
    ### Fidelity left by generation

    <small>Median over seeds; band: lowest to highest; as far as every chain has a value. Dashed: the share below which
    a sign is lost. Above 1 it improved (cut off at 1.5); an accuracy near chance is mostly noise.</small>
    """)
    return


@app.cell(hide_code=True)
def show_curves(chosen, results, share):
    _left = signs.fidelity_left(results, chosen)
    controls.drawn(signs.left_charts(_left, chosen, results.cells.order, share))
    return


@app.cell(hide_code=True)
def about_firsts(share):
    controls.heading(
        f"Lost first, where lost means that less than {share:g} is left",
        "Confirmed by one further generation. A sign not lost within the horizon leaves the order unknown only where "
        "it may have gone first. No verdict: generation 0 had nothing to lose.",
    )
    return


@app.cell(hide_code=True)
def show_firsts(chosen, lost, results):
    mo.vstack(
        [
            controls.table(
                signs.firsts(lost, chosen, [*results.varied, "seed"], results.cells.order),
                "No chain has a verdict.",
            ),
            controls.table(signs.onsets(lost, chosen, results.cells.order), "No chain has a verdict."),
        ]
    )
    return


@app.cell(hide_code=True)
def about_order(share):
    controls.heading(
        f"The order, pair by pair (less than {share:g} left)",
        "Chains of all cells in which the row's sign is lost before the column's, out of those whose order is known. "
        "Point at a tile for its 90 % interval (Clopper–Pearson, with unknown orders counted both ways).",
    )
    return


@app.cell(hide_code=True)
def show_order(chosen, lost):
    controls.drawn(signs.order_chart(lost, chosen))
    return


@app.cell(hide_code=True)
def about_shares():
    mo.md(r"""
    ### The order depends on what counts as lost

    <small>Kaplan–Meier median of the onset, by the share that counts as lost; a line ends where fewer than half of the
    chains lose that much. At each share, the lowest line goes first.</small>
    """)
    return


@app.cell(hide_code=True)
def show_shares(by_share, chosen, results):
    controls.drawn(signs.when_charts(by_share, chosen, results.cells.order))
    return


if __name__ == "__main__":
    app.run()
