# Start munge, then the daemon that is named, in the foreground.
set -e
install -d -o munge -g munge -m 755 /run/munge
runuser -u munge -- /usr/sbin/munged
install -d /var/spool/slurmctld /var/spool/slurmd
exec "$@" -D
