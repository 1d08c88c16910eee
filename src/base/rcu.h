/* liburcu, in a form that the thread sanitizer can follow: it sees neither the library's barriers nor the order that a dependent load has by
 * itself. */
#ifndef BASE_RCU_H
#define BASE_RCU_H

#include <urcu-bp.h>

extern char rcu_order; /* under the thread sanitizer readers release it, and whoever waits for them acquires it */

#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);

#undef rcu_dereference
#undef rcu_assign_pointer
#define rcu_dereference(p)       __atomic_load_n(&(p), __ATOMIC_ACQUIRE)
#define rcu_assign_pointer(p, v) __atomic_store_n(&(p), v, __ATOMIC_RELEASE)

static inline void rcu_order_unlock(void) {
  __tsan_release(&rcu_order);
  rcu_read_unlock();
}
static inline void rcu_order_wait(void) {
  synchronize_rcu();
  __tsan_acquire(&rcu_order);
}
#undef rcu_read_unlock
#undef synchronize_rcu
#define rcu_read_unlock rcu_order_unlock
#define synchronize_rcu rcu_order_wait
#endif

#endif
