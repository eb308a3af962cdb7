# The page and the command line on a CPU: docker build -t project7 . && docker run -p 7860:7860 project7
FROM python:3.12-slim

# One CPU build of torch and torchvision, before the rest asks for the one of the package index, which brings CUDA.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11,<2.16" "torchvision>=0.26,<0.31"

WORKDIR /opt/project7
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Nobody needs to be root to colour a photo; models of one's own are mounted at /models.
RUN useradd --create-home painter && mkdir /models && chown painter /models
USER painter
WORKDIR /home/painter
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/api/health')"]
ENTRYPOINT ["project7"]
CMD ["serve", "--host", "0.0.0.0", "--port", "7860", "--models-dir", "/models"]
