/* New programs: a node's descriptor that survives exec works there, a VM's does not (EIO), and /dev/kvm is there whatever the
 * environment. */
#include <spawn.h>
#include <sys/syscall.h>
#include "client.h"

extern char **environ;

static int become(int argc, char **argv) {
  int fd = argc > 2 ? atoi(argv[2]) : -1;
  if (!strcmp(argv[1], "node")) {
    CHECK(IS_KVM(fd));
    CHECK(ioctl(fd, KVM_CREATE_VM, 0) >= 0);
  } else if (!strcmp(argv[1], "vm")) {
    CHECK_ERRNO(ioctl(fd, KVM_CHECK_EXTENSION, 3), EIO);
    CHECK_ERRNO(ioctl(fd, KVM_CREATE_VCPU, 0), EIO);
    CHECK(close(fd) == 0);
  } else if (!strcmp(argv[1], "gone")) {
    CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), EBADF);
  } else {
    struct machine m = MACHINE(halt_code);
    CHECK(runs_to_halt(&m));
    CHECK(!getenv("MARK") == !strcmp(argv[1], "bare"));
  }
  return 0;
}

static const char *self;

static int exec_with(const char *what, int fd) {
  char number[16];
  snprintf(number, sizeof(number), "%d", fd);
  pid_t pid = fork();
  if (pid == 0) {
    execl(self, self, what, number, (char *)NULL);
    _exit(99);
  }
  return wait_for(pid);
}

static void descriptors(void) {
  int kvm = open("/dev/kvm", O_RDWR), closing = open_kvm();
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  CHECK(exec_with("node", kvm) == 0);
  CHECK(exec_with("gone", closing) == 0);
  CHECK(exec_with("gone", vm) == 0);
  CHECK(fcntl(vm, F_SETFD, 0) == 0);
  CHECK(exec_with("vm", vm) == 0);
  CHECK(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  close(vm), close(closing), close(kvm);
}

enum { EXECVE, EXECLE, EXECVPE, FEXECVE, EXECVEAT, BY_NUMBER, WAYS };

/* An environment of the caller's own, with or without anything in it. */
static int exec_by(int way, const char *what, char **envp) {
  char *argv[] = {(char *)self, (char *)what, NULL};
  pid_t pid = way % 2 ? vfork() : fork();
  if (pid) return wait_for(pid);
  switch (way) {
  case EXECVE:
    execve(self, argv, envp);
    break;
  case EXECLE:
    execle(self, self, what, (char *)NULL, envp);
    break;
  case EXECVPE:
    execvpe(self, argv, envp);
    break;
  case FEXECVE:
    fexecve(open(self, O_RDONLY | O_CLOEXEC), argv, envp);
    break;
  case EXECVEAT:
    execveat(AT_FDCWD, self, argv, envp, 0);
    break;
  case BY_NUMBER:
    syscall(SYS_execve, self, argv, envp);
    break;
  }
  _exit(99);
}

static void environments(void) {
  char *bare[] = {NULL}, *marked[] = {"MARK=1", NULL}, *preload[] = {"LD_PRELOAD=", "MARK=1", NULL};
  for (int way = 0; way < WAYS; way++) {
    CHECK(exec_by(way, "bare", bare) == 0);
    CHECK(exec_by(way, "marked", marked) == 0);
    CHECK(exec_by(way, "marked", preload) == 0);
  }
  pid_t pid;
  char *argv[] = {(char *)self, "bare", NULL};
  CHECK(posix_spawn(&pid, self, NULL, NULL, argv, bare) == 0);
  CHECK(wait_for(pid) == 0);
  CHECK(posix_spawnp(&pid, self, NULL, NULL, argv, bare) == 0);
  CHECK(wait_for(pid) == 0);
  CHECK_ERRNO(execve("/nonexistent", argv, bare), ENOENT);
}

int main(int argc, char **argv) {
  if (argc > 1) return become(argc, argv);
  self = realpath("/proc/self/exe", NULL);
  CHECK(self);
  descriptors();
  environments();
  return 0;
}
