#!/usr/bin/env bash
# Installs what tests/slurm needs, on Debian or Ubuntu; does nothing where it is there already.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
complete() {
    local program
    for program in slurmctld slurmd sbatch munged ip; do command -v "$program" >/dev/null || return 1; done
}

complete && exit 0
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2
complete
