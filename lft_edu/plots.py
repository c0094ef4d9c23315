"""Data → figures, nothing else. Every function returns a ``plotly.graph_objects.Figure``; :func:`still` turns one into
a picture for print and for places that show no JavaScript. Colours are Okabe and Ito's, told apart by everyone.
"""

import html

import plotly.graph_objects as go

from .metrics import row_title

CONFIG = {"showSendToCloud": False, "displaylogo": False}
COLOURS = {
    "skip": "#000000",
    "mean-shift": "#999999",
    "procrustes": "#999999",
    "ridge": "#E69F00",
    "loop": "#999999",
    "regression": "#0072B2",
    "flow-matching": "#D55E00",
    "flow-walking": "#009E73",
    "flow-walking-euler": "#56B4E9",
    "hybrid": "#CC79A7",
    "flow-walking-kl": "#F0E442",
}
SYMBOLS = {"6-12": "circle", "6-18": "square"}
AXES = {
    "parameters": "parameters of the whole model",
    "nfe_total": "layer-sized evaluations per token, whole model",
    "ms_decode": "milliseconds per generated token",
}


def _figure(title: str, x: str, y: str, **layout) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        title=html.escape(title), template="plotly_white", xaxis_title=x, yaxis_title=y, height=460,
        margin={"l": 70, "r": 20, "t": 60, "b": 60}, legend={"itemsizing": "constant"}, **layout,
    )  # fmt: skip
    return figure


def _marker(row: dict) -> dict:
    """A row's colour, and its shape: a cross for skipping, else a circle or square for the layers replaced."""
    skip = row["name"] == "skip"
    symbol = "x-thin" if skip else SYMBOLS.get("{}-{}".format(*row["span"]), "diamond")
    line = {"width": 2 if skip else 1, "color": "#333333"}
    return {"color": COLOURS.get(row["name"], "#999999"), "size": 11, "line": line, "symbol": symbol}


def ladder(results: dict, x: str = "parameters", shipped_only: bool = True) -> go.Figure:
    """KL against a cost, one mark an operator, circles for 6 layers replaced and squares for 12.

    Args:
        results: ``assets/results/ladder.json``.
        x: ``"parameters"``, ``"nfe_total"`` or ``"ms_decode"``.
        shipped_only: leave out the same weights walked by other solvers.
    """
    if x not in AXES:
        raise ValueError(f"x={x!r}: choose one of {', '.join(AXES)}.")
    title = AXES[x]
    figure = _figure(
        f"What an operator costs and what it loses ({title})", title, "KL(teacher ‖ student), nats per token"
    )
    layers = results["teacher"]["layers"]
    for row in results["rows"]:
        m, n = row["span"]
        if shipped_only and not (row.get("shipped") or row["name"] in ("skip", "loop")):
            continue
        low, high = row["kl_interval"]
        value = {**row, "nfe_total": layers - (n - m) + row["nfe"]}[x]
        name = "skip" if row["name"] == "skip" else f"{row_title(row)}, {m}–{n}"
        text = (
            f"{row_title(row)} · layers {m}–{n}<br>KL {row['kl']:.3f} ({low:.3f}–{high:.3f})<br>{title}: {value:,.4g}"
        )
        figure.add_scatter(
            x=[value], y=[row["kl"]], name=name, mode="markers", hovertext=[text], hoverinfo="text",
            legendgroup=name, showlegend=name not in {trace.name for trace in figure.data},
            error_y={"array": [high - row["kl"]], "arrayminus": [row["kl"] - low], "symmetric": False, "thickness": 1},
            marker=_marker(row),
        )  # fmt: skip
    figure.update_yaxes(type="log")
    return figure


def skip_curve(results: dict) -> go.Figure:
    """KL of skipping the best contiguous span of j layers, for every j that was measured."""
    figure = _figure("What it costs to skip layers", "layers skipped, the best contiguous span", "KL, nats per token")
    costs = [0, *(entry["kl"] for entry in results["skip"].values())]
    figure.add_scatter(
        x=list(range(len(costs))), y=costs, name="skip", line={"color": COLOURS["skip"]}, mode="lines+markers",
        hovertemplate="skip %{x} layers: KL %{y:.3f}<extra></extra>",
    )  # fmt: skip
    return figure


def skipped_layers(results: dict) -> go.Figure:
    """The headline: j* of every shipped operator with its interval, circles for 6 layers replaced, squares for 12."""
    figure = _figure(
        "How many layers could one have skipped instead?", "equivalent skipped layers j* (fewer is better)", ""
    )
    rows = [
        r
        for r in results["rows"]
        if r.get("shipped") and None not in (r["skipped_layers"], *r["skipped_layers_interval"])
    ]
    for row in sorted(rows, key=lambda r: (r["span"], -r["skipped_layers"])):
        (m, n), (low, high), j = row["span"], row["skipped_layers_interval"], row["skipped_layers"]
        name = f"{row['name']}, {m}–{n}"
        figure.add_scatter(
            x=[j], y=[name], mode="markers", name=name, showlegend=False,
            error_x={"array": [high - j], "arrayminus": [j - low], "symmetric": False, "thickness": 1},
            marker=_marker(row),
            hovertemplate=f"{name}: as costly as skipping %{{x:.2f}} layers ({low:.2f}–{high:.2f})<extra></extra>",
        )  # fmt: skip
    figure.update_layout(height=560, margin={"l": 190})
    return figure


def skip_growth(growth: dict) -> go.Figure:
    """How much skipping the best j layers costs as the teacher trains: one line a j."""
    figure = _figure(
        "Layers come to matter as a teacher trains",
        "tokens the teacher has seen",
        "KL of skipping the best j layers, nats",
    )
    colours = ["#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00"]
    rows = growth["rows"]
    for (j, _), colour in zip(rows[0]["skip"].items(), colours, strict=False):
        figure.add_scatter(
            x=[r["tokens"] for r in rows], y=[r["skip"][j]["kl"] for r in rows], name=f"j = {j}",
            line={"color": colour}, mode="lines+markers",
        )  # fmt: skip
    figure.update_yaxes(type="log")
    return figure


def training(histories: dict, title: str = "Training") -> go.Figure:
    """Loss against step, log scale. ``histories``: name → :class:`~lft_edu.training.History`."""
    figure = _figure(title, "step", "loss")
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
    for (name, history), colour in zip(histories.items(), colours * 9, strict=False):
        figure.add_scatter(
            x=history.steps, y=history.losses, name=html.escape(name), line={"color": colour}, mode="lines"
        )
    figure.update_yaxes(type="log")
    return figure


def token_kl(tokens: list[str], divergence: list[float], title: str) -> go.Figure:
    """A text as a strip of tokens, darker where the student parts from the teacher. Tokens are shown literally."""
    shown = [html.escape(token).replace("\n", "⏎").replace(" ", "·") for token in tokens]
    figure = _figure(title, "token", "")
    figure.add_heatmap(
        z=[divergence], x=list(range(len(tokens))), colorscale="Cividis", reversescale=True, zmin=0,
        hovertext=[[f"{i}: {s}<br>KL {d:.3f} nats" for i, (s, d) in enumerate(zip(shown, divergence, strict=True))]],
        hoverinfo="text", colorbar={"title": "KL, nats"},
    )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=shown, tickangle=-60)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=240)
    return figure


def still(figure: go.Figure, alt: str, width: float = 9.0):
    """A static twin of a figure made here, for GitHub and print, as an ``IPython.display.Image`` with alt text.

    Draws lines, markers, error bars and heat maps; hover and legends' clicks are lost.
    """
    import io

    import matplotlib.figure
    from IPython.display import Image

    page = matplotlib.figure.Figure(figsize=(width, width * 0.55), layout="constrained")
    axes = page.subplots()
    markers = {"circle": "o", "square": "s", "diamond": "D", "x-thin": "x"}
    for trace in figure.data:
        if trace.type == "heatmap":
            shown = axes.imshow(trace.z, aspect="auto", cmap="cividis_r", vmin=trace.zmin)
            page.colorbar(shown, label=trace.colorbar.title.text)
            continue
        colour = trace.line.color or trace.marker.color
        common = {"color": colour, "label": html.unescape(trace.name) if trace.showlegend is not False else None}
        marker = markers.get(trace.marker.symbol, "o") if "markers" in trace.mode else None
        if trace.error_x.array is not None:
            sides = [list(trace.error_x.arrayminus), list(trace.error_x.array)]
            axes.errorbar(trace.x, trace.y, xerr=sides, fmt="none", ecolor="#333333", elinewidth=1)
        style = "none" if "lines" not in trace.mode else "--" if trace.line.dash == "dash" else "-"
        if trace.error_y.array is not None:
            sides = [list(trace.error_y.arrayminus), list(trace.error_y.array)]
            axes.errorbar(trace.x, trace.y, yerr=sides, fmt="none", ecolor="#333333", elinewidth=1)
        axes.plot(trace.x, trace.y, marker=marker, linestyle=style, **common)
    layout = figure.layout
    for scale, axis in ((axes.set_xscale, layout.xaxis), (axes.set_yscale, layout.yaxis)):
        if axis.type == "log":
            scale("log")
    if layout.xaxis.ticktext:
        labels = [html.unescape(text).replace("$", r"\$") for text in layout.xaxis.ticktext]
        axes.set_xticks(layout.xaxis.tickvals, labels, rotation=60, ha="right", fontsize=7)
        axes.set_yticks([])
    else:
        if any(trace.showlegend is not False for trace in figure.data):
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)
    axes.set(
        xlabel=layout.xaxis.title.text, ylabel=layout.yaxis.title.text or "", title=html.unescape(layout.title.text)
    )
    buffer = io.BytesIO()
    page.savefig(buffer, format="png", dpi=80)
    return Image(buffer.getvalue(), alt=alt)
