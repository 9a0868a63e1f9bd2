#!/bin/sh
# Alertmanager 0.25.0 takes the last brace off a matcher without quotes, and says that the configuration is right.
#
# Expected: `matchers: ['zone=~a.{2}']` matches zone=abc as the same value in quotes does, or `amtool check-config` refuses it.
# Seen:     the check succeeds; the route has the pattern `a.{2`, which matches no zone that was meant, so its alerts go to the
#           default receiver. The brace counts as the end of a list of matchers in braces that never began.
# Needs:    apt-get of Debian 12.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download prometheus-alertmanager=0.25.0-1+b4 >/dev/null
dpkg -x prometheus-alertmanager_*.deb .
cat >routes.yml <<'YAML'
route:
  receiver: rest
  routes:
    - {receiver: bare, matchers: ['zone=~a.{2}']}
    - {receiver: quoted, matchers: ['zone=~"a.{2}"']}
receivers: [{name: rest}, {name: bare}, {name: quoted}]
YAML
usr/bin/amtool check-config routes.yml
usr/bin/amtool config routes show --config.file=routes.yml
found=$(usr/bin/amtool config routes test --config.file=routes.yml zone=abc)
echo "zone=abc goes to: $found"
if [ "$found" != quoted ]; then
    echo "it has changed: the matcher without quotes matches"
    exit 1
fi
