/* What the thread sanitizer knows of liburcu's order by. */
#include "base/rcu.h"

char rcu_order;
