/* The border between the library and a front end that brings it to unmodified programs.
 *
 * A front end sees a program's system calls (as a preload library, or one day as a tracer) and turns those on virtual device
 * nodes into calls of include/uvirt.h.  What it needs beyond that header is here, and nothing else of the library is its
 * business: which paths are nodes, which descriptors are ours and what becomes of their numbers, and signals.
 */
#ifndef API_FRONT_H
#define API_FRONT_H

#include <signal.h>
#include "base/ownfd.h"
#include "base/process.h"
#include "base/signals.h"

/* Whether this thread is at work inside the library: system calls it makes now are the library's own. */
static inline bool front_inside(void) {
  return signal_gate.depth;
}
/* Whether the library has begun to work in this process: before the first node is opened it has no part in signals. */
static inline bool front_started(void) {
  return process_ready();
}

/* ---- nodes ---- */

/* The numbers of the node at path, which is absolute and without "." and "..".  False: no node. */
bool front_node(const char *path, unsigned *major, unsigned *minor);

/* ---- descriptors ---- */

enum front_kind {
  FRONT_FOREIGN, /* not ours */
  FRONT_NODE,    /* an opened device node */
  FRONT_OBJECT,  /* a VM, vCPU or device */
  FRONT_STATS,   /* statistics: can be read */
};
enum front_kind front_kind(int fd);

/* newfd became a duplicate of old.  0, or -errno (newfd is as it was). */
int front_alias(int old, int newfd);
/* The numbers from first to last were closed or replaced by other means than uvirt_close(). */
void front_forget(unsigned first, unsigned last);
/* fd came from elsewhere: received, inherited through exec, duplicated or opened unseen.  Enters it if it is one of our objects,
 * a node, or the machine's own device of a node's numbers.  0; -EIO: an object of another process or program, which nobody here
 * can use (what KVM answers too); -ENOTTY: something else. */
int front_adopt(int fd);

/* ---- signals ---- */

typedef int front_sigaction_fn(int sig, const struct sigaction *act, struct sigaction *old);
typedef int front_sigmask_fn(int how, const sigset_t *set, sigset_t *old);

/* The functions under those that the front end shows the program.  Once, before anything else. */
void front_set_signal_functions(front_sigaction_fn *action, front_sigmask_fn *mask);

/* The program calls sigaction(2) or pthread_sigmask(3): returned is what that returns. */
front_sigaction_fn front_sigaction;
front_sigmask_fn front_sigmask;

/* Once in a thread, before its first ioctl: a mask it got before the library knew of it. */
void front_take_mask(void);

#endif
