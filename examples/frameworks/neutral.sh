#!/bin/sh
# Nearest neighbours in awk: a program of no framework and no Python that knows WHERRY_RANK and
# WHERRY_WORLD_SIZE, and recognises its share of the digits:
#
#     wherry run -- sh neutral.sh
#     wherry run --workers 2 -- sh neutral.sh
set -eu
data=${DIGITS:-$(python -c 'import sklearn; print(sklearn.__path__[0])')/datasets/data/digits.csv.gz}

zcat "$data" | awk -F, -v rank="${WHERRY_RANK:-0}" -v world="${WHERRY_WORLD_SIZE:-1}" '
    NR % 10 { for (i = 1; i <= 64; i++) known[known_count, i] = $i; label[known_count++] = $65; next }
    test++ % world == rank { for (i = 1; i <= 64; i++) image[mine, i] = $i; truth[mine++] = $65 }
    END {
        for (m = 0; m < mine; m++) {
            nearest = 1e9
            for (k = 0; k < known_count; k++) {
                distance = 0
                for (i = 1; i <= 64 && distance < nearest; i++) {
                    step = image[m, i] - known[k, i]
                    distance += step * step
                }
                if (distance < nearest) { nearest = distance; guess = label[k] }
            }
            right += guess == truth[m]
        }
        printf "rank %d of %d: accuracy=%.3f\n", rank, world, right / mine
    }'
