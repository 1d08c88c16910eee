/* The cached process id, refreshed in forked children, and RCU's fork handlers. */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#include <urcu-bp.h>
#include "base/fault.h"
#include "base/process.h"
#include "base/signals.h"

_Atomic pid_t process_pid_cached;

static void in_child(void) {
  urcu_bp_after_fork_child();
  fault_after_fork();
  signals_after_fork();
  atomic_store_explicit(&process_pid_cached, getpid(), memory_order_relaxed);
}

static void init(void) {
  atomic_store_explicit(&process_pid_cached, getpid(), memory_order_relaxed);
  pthread_atfork(urcu_bp_before_fork, urcu_bp_after_fork_parent, in_child);
}

void process_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, init);
}

unsigned process_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set)) return 1;
  int n = CPU_COUNT(&set);
  return n > 0 ? (unsigned)n : 1;
}
