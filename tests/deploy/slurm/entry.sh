# Start munge, then the daemon that is named, in the foreground. More names are nodes that share
# this container, each with a daemon of its own.
set -e
install -d -o munge -g munge -m 755 /run/munge
runuser -u munge -- /usr/sbin/munged --force
install -d /var/spool/slurmctld
daemon=$1
shift
if [ $# -eq 0 ]; then exec "$daemon" -D; fi
for node in "$@"; do
    "$daemon" -N "$node"
done
exec sleep infinity
