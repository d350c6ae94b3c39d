#!/bin/bash
# tool-image.sh OUTDIR TOOL: writes OUTDIR/tool-image.tar (docker-archive form) with kmesh.local/kmesh-trace:1, which is
# the image of cargo xtask dist, of TOOL, with the shared libraries that an unoptimised TOOL needs, and
# kmesh.local/shell:1, which is busybox with these libraries and without TOOL.
set -eu
. "$(dirname "$0")/lib.sh"
O=$(mkdir -p "$1" && cd "$1" && pwd); TOOL=$2; T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
need busybox sha256sum tar
mkdir -p "$T"/i "$T"/libs "$T"/tool "$T"/shell/bin
for l in $(ldd "$TOOL" 2>/dev/null | grep -o '/[^ ]*'); do mkdir -p "$T/libs$(dirname "$l")"; cp -L "$l" "$T/libs$l"; done
cp -a "$T"/libs/. "$T"/tool; cp -a "$T"/libs/. "$T"/shell
cp "$TOOL" "$T"/tool/kmesh-trace
cp "$BIN/busybox" "$T"/shell/bin/; for a in sh head chmod mv sleep; do ln -s busybox "$T/shell/bin/$a"; done
for n in tool shell; do
  mkdir -p "$T/$n"/{proc,sys,dev,run}
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$T/$n" -cf "$T/i/$n.tar" .
  L=$(sha256sum "$T/i/$n.tar" | cut -d' ' -f1)
  printf '{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z","config":{"Env":["PATH=/bin"],"User":"0:0","Entrypoint":["/kmesh-trace"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"2020-01-01T00:00:00Z","created_by":"%s"}]}' "$L" "$n" >"$T/i/$n.json"
done
printf '[{"Config":"tool.json","RepoTags":["kmesh.local/kmesh-trace:1"],"Layers":["tool.tar"]},{"Config":"shell.json","RepoTags":["kmesh.local/shell:1"],"Layers":["shell.tar"]}]' >"$T/i/manifest.json"
tar -C "$T/i" -cf "$O/tool-image.tar" manifest.json tool.json shell.json tool.tar shell.tar
