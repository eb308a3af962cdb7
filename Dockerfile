# Project7 in a container, on the CPU: the page and the HTTP API by default, every other command by its name.
#
#   docker build -t project7 .
#   docker run --rm -p 7860:7860 project7                                       # the page: http://localhost:7860
#   docker run --rm -v "$PWD:/photos" -w /photos project7 colorize holiday/     # your photos, into outputs/
#
# Your own models: -v "$PWD/models:/home/project7/models". A folder that is written to has to allow it to user 1000
# (or add --user "$(id -u)").
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# torch and torchvision come from one index as a pair: without CUDA they are a tenth of the size.
WORKDIR /tmp/project7
COPY requirements.txt .
RUN grep -E '^torch(vision)?[<>=]' requirements.txt > torch.txt \
 && pip install --index-url https://download.pytorch.org/whl/cpu -r torch.txt \
 && pip install -r requirements.txt

# The toolkit last, so that a change in it does not fetch torch again; the models come with it.
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY Project7 Project7
COPY models models
RUN pip install --no-deps . && rm -rf /tmp/project7

RUN useradd --create-home --uid 1000 project7
USER 1000
WORKDIR /home/project7

EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/api/health')"]
ENTRYPOINT ["project7"]
CMD ["serve", "--host", "0.0.0.0"]
