#!/usr/bin/env bash
# Opens the demo's report in a headless Chromium, as wide as a desk's screen and as a phone, light and dark: fails if the page
# logs an error, asks for anything from elsewhere, or the picture is blank. Pictures go to the folder given, if one is.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "skipped: $1"
    exit 0
}

browser="${CHROMIUM:-}"
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    [ -n "$browser" ] || browser="$(command -v "$name" || true)"
done
[ -n "$browser" ] || skip "no Chromium on PATH; set CHROMIUM to one"

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
pictures="${1:-$scratch}"
mkdir -p "$pictures"

lowbit() { cargo run --release --quiet -p lowbit-cli -- "$@"; }
lowbit demo --output "$scratch/demo" > "$scratch/demo.txt"
lowbit report "$scratch/demo/digits.onnx" "$scratch/demo/digits.int8.onnx" --data "$scratch/demo/test.npz" \
    --shadow --sensitivity -o "$scratch/report.html"

# Blink's numbers for the colour scheme that the reader prefers.
for view in light-1280-1 light-390-1 dark-1280-0 dark-390-0; do
    IFS=- read -r scheme width number <<< "$view"
    picture="$pictures/report-$scheme-$width.png"
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr --v=0 \
        --host-resolver-rules="MAP * ~NOTFOUND" --blink-settings="preferredColorScheme=$number" \
        --window-size="$width,2400" --screenshot="$picture" "file://$scratch/report.html" > "$scratch/log" 2>&1 ||
        { cat "$scratch/log"; exit 1; }
    if grep -E 'CONSOLE|Page load failed|ERR_' "$scratch/log"; then
        echo "the page logs errors"
        exit 1
    fi
    python3 - "$picture" "$scheme" "$width" <<'PYTHON'
import struct, sys, zlib

path, scheme, width = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = open(path, "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n", f"{path}: no PNG"
at, pixels, header = 8, b"", None
while at < len(data):
    length, kind = struct.unpack(">I4s", data[at : at + 8])
    body = data[at + 8 : at + 8 + length]
    header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
    pixels += body if kind == b"IDAT" else b""
    at += 12 + length
w, h, depth, colour = header[:4]
channels = {2: 3, 6: 4}[colour]
raw, stride = zlib.decompress(pixels), w * channels
assert depth == 8 and w >= width and len(raw) == h * (stride + 1), f"{path}: {w} x {h}"
# The first pixel tells the scheme; a page that drew little repeats lines: filtered, they are zeros.
first = sum(raw[1:4]) / 3
assert (first > 128) == (scheme == "light"), f"{path}: the page is not {scheme}"
drawn = sum(any(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)]) for y in range(1, h)) / h
assert len(data) > 20_000 and drawn > 0.3, f"{path}: blank ({len(data)} bytes, {drawn:.2f} of the lines differ)"
print(f"{path.rsplit('/', 1)[-1]}: {w} x {h}, {len(data)} bytes")
PYTHON
done
