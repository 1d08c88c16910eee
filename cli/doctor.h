/* What `uvirt doctor` finds out about the host. */
#ifndef CLI_DOCTOR_H
#define CLI_DOCTOR_H

enum finding_state {
  FINDING_FINE,
  FINDING_LACK, /* uvirt works, but `cost` says what does not, or less well */
  FINDING_FAIL, /* uvirt does not work */
};

struct finding {
  enum finding_state state;
  char value[160];
  const char *cost; /* a sentence; NULL where fine */
};

struct check {
  const char *name;
  void (*look)(struct finding *f);
};

extern const struct check doctor_checks[];
extern const unsigned doctor_check_count;

#endif
