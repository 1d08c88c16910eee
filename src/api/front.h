/* The border between the library and a front end that brings it to unmodified programs.
 *
 * A front end sees a program's system calls (as a preload library, or one day as a tracer) and turns those on virtual device
 * nodes into calls of include/uvirt.h.  What it needs beyond that header is here, and nothing else of the library is its
 * business: which descriptors are ours and what becomes of their numbers, which paths are nodes, and signals.
 */
#ifndef API_FRONT_H
#define API_FRONT_H

#include <signal.h>
#include "base/signals.h"
#include "base/types.h"

enum front_kind {
  FRONT_FOREIGN, /* not ours */
  FRONT_NODE,    /* an opened device node */
  FRONT_OBJECT,  /* a VM, vCPU or device */
  FRONT_STATS,   /* statistics: can be read */
};

enum front_kind front_kind(int fd);

/* Whether this thread is at work inside the library: system calls it makes now are the library's own. */
static inline bool front_inside(void) {
  return signal_gate.depth;
}

/* Whether path, absolute and without "." and "..", is a device node. */
bool front_is_node(const char *path);

/* ---- numbers ---- */

/* newfd became a duplicate of old.  0, or -errno (newfd is as it was). */
int front_alias(int old, int newfd);
/* The numbers from first to last were closed or replaced by other means than uvirt_close(). */
void front_forget(unsigned first, unsigned last);

#endif
