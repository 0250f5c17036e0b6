#!/bin/sh
# From a film with burned-in captions to its subtitles, and a page to check them on:
#   pip install 'caption-extents[ocr]'
#   sh examples/first_time.sh film.mp4 results
set -eu
film=$1
results=$2
name=$(basename "${film%.*}" | tr -c "A-Za-z0-9._\n-" "-")
mkdir -p "$results"

caption-extents doctor --store "$results"
caption-extents crop "$film" --picture "$results/crop.png"
caption-extents run "$film" --crop auto --store "$results" --refine --ocr --video-id "$name"
caption-extents subtitles "$name" "$results/$name.srt" --store "$results"
caption-extents report "$name" --store "$results"
