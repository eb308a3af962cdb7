"""Exports the models that come with the toolkit to models/ beside this file, for the distribution project7-onnx."""

import shutil
from pathlib import Path

from Project7.export import export_model
from Project7.model_folder import shipped_models

HERE = Path(__file__).resolve().parent


def main() -> None:
    for model in shipped_models():
        folder = HERE / "models" / model.name
        export_model(model.folder.best, folder, half=True, force=True)
        for part in ("unet", "scheduler"):  # diffusers' folders, which nobody reads here
            shutil.rmtree(folder / part, ignore_errors=True)
        print(f"{sum(path.stat().st_size for path in folder.iterdir()):>12,}  {folder}")


if __name__ == "__main__":
    main()
