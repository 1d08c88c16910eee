/* Children: what they may do with their parent's VM (nothing: EIO), that they can have their own, and that nothing they do to
 * their descriptors reaches the parent. */
#include <sched.h>
#include <spawn.h>
#include <sys/syscall.h>
#include "client.h"

extern char **environ;
pid_t _Fork(void);

static void use_of_parents(void *arg) {
  struct machine *m = arg;
  struct kvm_regs regs;
  CHECK_ERRNO(ioctl(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
  CHECK_ERRNO(ioctl(m->vm, KVM_CREATE_VCPU, 1), EIO);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_GET_REGS, &regs), EIO);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EIO);
  CHECK(IS_KVM(m->kvm)); /* the node has no state */
  close(m->vcpu), close(m->vm);
  struct machine own = MACHINE(halt_code);
  CHECK(runs_to_halt(&own));
}

static void grandchild(void *arg) {
  struct machine m = MACHINE(halt_code);
  CHECK(runs_to_halt(&m));
}

static void forked(void *arg) {
  use_of_parents(arg);
  CHECK(in_child(grandchild, NULL) == 0);
}

static void by_raw_calls(struct machine *m) {
  pid_t pid = _Fork();
  if (pid == 0) {
    CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EIO);
    _exit(0);
  }
  CHECK(wait_for(pid) == 0);
  pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) {
    CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EIO);
    _exit(0);
  }
  CHECK(wait_for(pid) == 0);
}

/* A vfork child closes everything, changes handlers and executes; all in its parent's memory. */
static volatile sig_atomic_t handled;
static void handler(int sig) {
  handled++;
}

static void in_parents_memory(struct machine *m) {
  struct sigaction act = {.sa_handler = handler}, now;
  CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
  pid_t pid = vfork();
  if (pid == 0) {
    for (int fd = 3; fd < 1024; fd++) close(fd);
    dup2(1, m->kvm);
    signal(SIGUSR1, SIG_DFL);
    sigaction(SIGSEGV, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    execl("/bin/true", "true", (char *)NULL);
    _exit(1);
  }
  CHECK(wait_for(pid) == 0);
  CHECK(IS_KVM(m->kvm));
  CHECK(runs_to_halt(m));
  CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == handler);
  CHECK(raise(SIGUSR1) == 0 && handled == 1);
  CHECK(sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
}

static void spawned(struct machine *m) {
  posix_spawn_file_actions_t actions;
  pid_t pid;
  CHECK(posix_spawn_file_actions_init(&actions) == 0);
  CHECK(posix_spawn_file_actions_addclose(&actions, m->vm) == 0);
  CHECK(posix_spawn_file_actions_adddup2(&actions, 2, m->vcpu) == 0);
  CHECK(posix_spawn(&pid, "/bin/true", &actions, NULL, (char *[]){"true", NULL}, environ) == 0);
  CHECK(wait_for(pid) == 0);
  CHECK(system("exit 3") == 3 << 8);
  CHECK(runs_to_halt(m));
}

/* Children made while other threads decode, emit and run; they make VMs of their own and are killed, as a supervisor would. */
static void *run_always(void *arg) {
  struct machine *m = arg;
  while (!m->run->request_interrupt_window) CHECK(runs_to_halt(m));
  return NULL;
}

static void while_threads_run(void) {
  struct machine busy[2] = {MACHINE(halt_code), MACHINE(halt_code)};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, run_always, &busy[i]) == 0);
  for (int i = 0; i < 30; i++) {
    pid_t pid = fork();
    if (pid == 0) {
      struct machine m = MACHINE(spin_code);
      if (i % 3 == 0) {
        m.ram[CODE] = 0xf4;
        _exit(runs_to_halt(&m) ? 0 : 1);
      }
      ioctl(m.vcpu, KVM_RUN, 0);
      _exit(1);
    }
    if (i % 3) {
      sleep_ms(i % 4);
      CHECK(kill(pid, SIGKILL) == 0);
      CHECK(wait_for(pid) == 128 + SIGKILL);
    } else {
      CHECK(wait_for(pid) == 0);
    }
  }
  for (int i = 0; i < 2; i++) {
    busy[i].run->request_interrupt_window = 1;
    CHECK(pthread_join(threads[i], NULL) == 0);
  }
}

/* Both go on to make code of their own after a fork: 3 is pi, 1 is one. */
static void code_apart(void) {
  static const uint8_t first[] = {0xd9, 0xee, 0xdd, 0xd8, 0xf4};             /* fldz; fstp st0; hlt: there is some code already */
  static const uint8_t three[] = {0xd9, 0xeb, 0xdf, 0x1e, 0x00, 0x20, 0xf4}; /* fldpi; fistp [0x2000]; hlt */
  static const uint8_t one[] = {0xd9, 0xe8, 0xdf, 0x1e, 0x00, 0x20, 0xf4};   /* fld1; fistp [0x2000]; hlt */
  int go[2];
  char byte = 0;
  struct machine m = MACHINE(first);
  CHECK(runs_to_halt(&m) && pipe(go) == 0);
  pid_t pid = fork();
  struct machine own = make_machine(pid ? three : one, sizeof(one));
  for (int i = 0; i < 1000; i++) {
    own.ram[0x2000] = 0;
    CHECK(runs_to_halt(&own) && own.ram[0x2000] == (pid ? 3 : 1));
    if (i > 0) continue;
    /* Both have made theirs before either goes on. */
    if (pid)
      CHECK(read(go[0], &byte, 1) == 1);
    else
      CHECK(write(go[1], &byte, 1) == 1);
  }
  if (pid == 0) _exit(0);
  CHECK(wait_for(pid) == 0);
}

int main(void) {
  struct machine m = MACHINE(halt_code);
  CHECK(runs_to_halt(&m));
  CHECK(in_child(forked, &m) == 0);
  CHECK(runs_to_halt(&m));
  by_raw_calls(&m);
  CHECK(runs_to_halt(&m));
  in_parents_memory(&m);
  spawned(&m);
  while_threads_run();
  code_apart();
  return 0;
}
