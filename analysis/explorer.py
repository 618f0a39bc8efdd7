import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Texts and images")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fortifai_ray.errors import UserError
    from support import controls, samples

    DATA = Path(__file__).parent / "data"


@app.cell(hide_code=True)
def introduction():
    mo.md(r"""
    # What each generation writes and draws

    The same prompt continued by every generation, losses side by side; and the same latent vectors decoded by the
    image model of every generation, beside each generation's own samples. Numbers say when a chain collapses; this
    notebook shows what collapse looks like.

    To see your own study, give its folder, `STORAGE/NAME`, or its MLflow experiment below, once for its texts and once
    for its images; or start with `marimo edit analysis/explorer.py -- --results FOLDER`. Texts and pictures are those
    that the sweep kept; latent vectors are decoded by the study's stored models (`STORAGE/stages`), which MLflow does
    not hold.
    """)
    return


@app.cell(hide_code=True)
def pick_texts():
    text_study = controls.picker(DATA, "language", mo.cli_args())
    mo.vstack([mo.md("## The same prompt through the generations"), controls.layout(text_study)])
    return (text_study,)


@app.cell(hide_code=True)
def open_texts(text_study):
    written = controls.opened(text_study.value, DATA, compares=False)
    try:
        prompts = samples.prompts(written)
    except UserError as _error:
        controls.stop(str(_error))
    controls.about(written)
    return prompts, written


@app.cell(hide_code=True)
def pick_prompt(prompts, written):
    prompt_picker = controls.choice(list(prompts), "prompt")
    text_seed = controls.choice([str(_seed) for _seed in samples.seeds(written, written.samples)], "seed")
    mo.hstack([prompt_picker, text_seed], justify="start")
    return prompt_picker, text_seed


@app.cell(hide_code=True)
def show_texts(prompt_picker, prompts, text_seed, written):
    try:
        _passage = samples.passage(written, prompts[prompt_picker.value], int(text_seed.value))
    except UserError as _error:
        controls.stop(str(_error))
    mo.vstack(
        [
            mo.Html(samples.text_page(_passage)),
            mo.md("<small>↵: a line break; ↵×12: twelve of them. Texts are cut at 600 characters.</small>"),
        ]
    )
    return


@app.cell(hide_code=True)
def pick_images():
    image_study = controls.picker(DATA, "digits", mo.cli_args())
    mo.vstack([mo.md("## The same latent vectors through the models"), controls.layout(image_study)])
    return (image_study,)


@app.cell(hide_code=True)
def open_images(image_study):
    drawn = controls.opened(image_study.value, DATA, compares=False)
    if drawn.pictures is None or drawn.pictures.is_empty():
        controls.stop(f"{drawn.name} keeps no pictures of samples: only VAEs and diffusion models have them.")
    controls.about(drawn)
    return (drawn,)


@app.cell(hide_code=True)
def pick_image_seed(drawn):
    image_seed = controls.choice([str(_seed) for _seed in samples.seeds(drawn, drawn.pictures)], "seed")
    mo.hstack([image_seed], justify="start")
    return (image_seed,)


@app.cell(hide_code=True)
def show_latents(drawn, image_seed):
    try:
        _page = mo.Html(samples.latent_page(drawn, int(image_seed.value)))
    except UserError as _error:
        _page = controls.say(str(_error))
    mo.vstack(
        [
            mo.md("### The same latent vectors in every generation"),
            _page,
            mo.md(
                "<small>Each column is one latent vector (for a diffusion model, one draw of its noise), the same in "
                "all rows.</small>"
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def show_samples(drawn, image_seed):
    try:
        _page = mo.Html(samples.sample_page(drawn, int(image_seed.value)))
    except UserError as _error:
        _page = controls.say(str(_error))
    mo.vstack(
        [
            mo.md("### What each generation wrote for the next"),
            _page,
            mo.md("<small>The first samples of each generation's corpus, drawn anew for each generation.</small>"),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
