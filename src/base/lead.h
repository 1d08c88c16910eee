/* How much before a time a thread has itself woken, because a host whose processor sleeps comes tens of microseconds late.
 *
 * It follows how late the thread has been: such that one time in eight it still comes later, and on average has to wait a few microseconds.
 */
#ifndef BASE_LEAD_H
#define BASE_LEAD_H

#include "base/types.h"

#define LEAD_MAX_NS  100000u
#define LEAD_STEP_NS 500u

/* It has come at `now`, to be there at `due`. */
static inline void lead_learn(u32 *lead, u64 now, u64 due) {
  if (now > due + 1000000) return; /* it was not let run: says nothing of sleep */
  if (now <= due)
    *lead -= MIN(*lead, LEAD_STEP_NS);
  else
    *lead = MIN(*lead + 7 * LEAD_STEP_NS, LEAD_MAX_NS);
}

#endif
