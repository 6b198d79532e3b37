"""Write runs.csv and the table of table.md from the runs below folders: ``python table.py <folder> ...``."""

import json
import sys
from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).parent
OWN = ("personal/test/acc_mean", "fine_tuned/test/acc_mean")


def read(run: Path) -> dict[str, object]:
    """Return a line of runs.csv; accuracies are of the last round."""
    config, provenance = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "provenance.json").read_text())
    target = config["algorithm"]["_target_"].split(".")
    end = pd.read_csv(run / "metrics.csv").iloc[-1]
    return {
        "algorithm": target[-2],
        "aggregator": config["aggregator"]["_target_"].rpartition(".")[2].lower(),
        "norm": config["model"].get("norm"),
        "seed": config["seed"],
        "rounds": int(end["round"]),
        "acc": end["global/test/acc"],
        "clients": end["client/test/acc_mean"],
        **{name.split("/")[0]: end.get(name) for name in OWN},
        "conflict": end["conflict/ratio"],
        "commit": provenance["commit"],
        "torch": provenance["versions"]["torch"],
        "cpu": provenance["cpu"],
        "threads": provenance["threads"],
    }


def percent(values: pd.Series) -> str:
    """Return mean and standard deviation in percent."""
    values = 100 * values.dropna()
    if values.empty:
        return ""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def main(folders: list[str]) -> None:
    """Read every finished run, and write both files."""
    runs = [path.parent for folder in folders for path in Path(folder).rglob("summary.json")]
    table = pd.DataFrame(map(read, runs)).sort_values(["norm", "algorithm", "aggregator", "seed"])
    table.to_csv(HERE / "runs.csv", index=False, float_format="%.6g")
    own = table["fine_tuned"].fillna(table["personal"])
    table = table.assign(own=own, moment=table["fine_tuned"].notna().map({True: " (fine-tuned)", False: ""}))
    rows = ["| `algorithm=` | seeds | mean | fedgh | own, mean | own, fedgh |", "| --- | --- | --- | --- | --- | --- |"]
    for (norm, name), group in table.groupby(["norm", "algorithm"]):
        cells = {rule: of_rule for rule, of_rule in group.groupby("aggregator")}
        seeds = " / ".join(str(len(cells.get(rule, ()))) for rule in ("mean", "fedgh"))
        numbers = [percent(cells[rule]["acc"]) if rule in cells else "" for rule in ("mean", "fedgh")]
        owns = [percent(cells[rule]["own"]) if rule in cells else "" for rule in ("mean", "fedgh")]
        moment = group["moment"].iloc[0]
        owns = [cell and cell + moment for cell in owns]
        shown = f"`{name}`" + ("" if norm == "none" else f", `model.norm={norm}`")
        rows.append(f"| {shown} | {seeds} | " + " | ".join(numbers + owns) + " |")
    (HERE / "table.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
