#!/bin/sh
# From a film with burned-in captions to its subtitles, and a page to check them on:
#   pip install 'caption-extents[ocr]'
#   sh examples/first_time.sh film.mp4 results [name of the film in there]
set -eu
film=${1:?which film? usage: first_time.sh FILM RESULTS}
results=${2:?into which folder? usage: first_time.sh FILM RESULTS}
name=${3:-film}
mkdir -p "$results"

caption-extents doctor --store "$results"
crop=$(caption-extents crop "$film" --picture "$results/crop.png")
caption-extents run "$film" --crop "$crop" --store "$results" --refine --ocr --video-id "$name"
caption-extents subtitles "$name" "$results/$name.srt" --store "$results"
caption-extents report "$name" --store "$results"
