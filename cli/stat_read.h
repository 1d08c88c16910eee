/* Reading the statistics of the virtual machines in another process. */
#ifndef CLI_STAT_READ_H
#define CLI_STAT_READ_H

#include <stdint.h>
#include <sys/types.h>

/* One statistic summed over the objects of its kind. */
struct stat_row {
  char owner[8]; /* "vm" or "vcpu" */
  char name[48];
  char unit[8]; /* "", "ns", "bytes" */
  int instant;  /* shows the present: rates have no meaning */
  uint64_t value;
};

#define STAT_ROWS_MAX 256

struct stat_sample {
  unsigned vms, vcpus, n;
  struct stat_row rows[STAT_ROWS_MAX];
};

/* Returns 0; -errno: -ENOENT no virtual machine of uvirt's in there, -ESRCH no such process, -EACCES not ours to read. */
int stat_read(pid_t pid, struct stat_sample *sample);

/* Processes with statistics that this user may read: at most max of them; returns how many there are. */
unsigned stat_processes(pid_t *pids, unsigned max);

#endif
