#!/bin/sh
# Sees to Chromium and its driver, which tests/test_report_page.py needs: root on Debian or Ubuntu is given them, and
# everybody else is told what to run. Nothing is done where both are there.
found() {
    for name in "$@"; do command -v "$name" > /dev/null && return 0; done
    return 1
}
here() {
    found chromium chromium-browser google-chrome google-chrome-stable && found chromedriver
}
install="apt-get install -y --no-install-recommends chromium chromium-driver"

here && exit 0
if [ "$(id -u)" = 0 ] && found apt-get; then
    echo "== installing Chromium and its driver (once)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && $install > /dev/null
    here && exit 0
fi
echo "The tests open a page in Chromium, and it or its driver (chromedriver) is not on the path. On Debian:" >&2
echo "  sudo $install" >&2
echo "elsewhere install Chromium or Chrome, and the chromedriver of the same version; or leave these tests out:" >&2
echo "  .venv/bin/python -m pytest -m 'not browser'" >&2
exit 1
