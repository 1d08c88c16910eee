/* What /dev/kvm and descriptors of it look like, and the files that say whether a machine can virtualize. */
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <limits.h>
#include "client.h"

int eaccess(const char *path, int mode);
int euidaccess(const char *path, int mode);

static void is_node(const struct stat *st) {
  CHECK(S_ISCHR(st->st_mode));
  CHECK((st->st_mode & 07777) == 0666);
  CHECK(st->st_rdev == makedev(10, 232));
  CHECK(st->st_nlink == 1 && st->st_size == 0);
}

static void node(void) {
  struct stat st, by_fd;
  int fd = open_kvm();
  CHECK(stat("/dev/kvm", &st) == 0);
  is_node(&st);
  CHECK(lstat("/dev/kvm", &st) == 0);
  is_node(&st);
  CHECK(fstatat(AT_FDCWD, "/dev/kvm", &st, AT_SYMLINK_NOFOLLOW) == 0);
  is_node(&st);
  CHECK(fstat(fd, &by_fd) == 0);
  is_node(&by_fd);
  CHECK(st.st_ino == by_fd.st_ino && st.st_dev == by_fd.st_dev);
  CHECK(fstatat(fd, "", &st, AT_EMPTY_PATH) == 0);
  is_node(&st);
  CHECK(chdir("/dev") == 0 && stat("kvm", &st) == 0 && chdir("/") == 0);
  is_node(&st);
  struct statx x;
  CHECK(statx(AT_FDCWD, "/dev/kvm", 0, STATX_BASIC_STATS, &x) == 0);
  CHECK(x.stx_mode == (S_IFCHR | 0666) && x.stx_rdev_major == 10 && x.stx_rdev_minor == 232);
  CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &x) == 0);
  CHECK(x.stx_mode == (S_IFCHR | 0666) && x.stx_rdev_major == 10 && x.stx_rdev_minor == 232);
  close(fd);
}

static void objects(void) {
  struct stat st;
  struct machine m = MACHINE(halt_code);
  CHECK(fstat(m.vm, &st) == 0 && st.st_mode == 0600);
  CHECK(fstat(m.vcpu, &st) == 0 && st.st_mode == 0600 && st.st_size == 0);
  close(m.vcpu), close(m.vm), close(m.kvm);
}

static void may_open(void) {
  int modes[] = {F_OK, R_OK, W_OK, R_OK | W_OK};
  for (int i = 0; i < 4; i++) {
    CHECK(access("/dev/kvm", modes[i]) == 0);
    CHECK(faccessat(AT_FDCWD, "/dev/kvm", modes[i], AT_EACCESS) == 0);
    CHECK(eaccess("/dev/kvm", modes[i]) == 0);
    CHECK(euidaccess("/dev/kvm", modes[i]) == 0);
  }
  CHECK_ERRNO(access("/dev/kvm", X_OK), EACCES);
  CHECK_ERRNO(access("/dev/kvm", 64), EINVAL);
  CHECK_ERRNO(access("/dev/kvmm", F_OK), ENOENT);
}

static void names(void) {
  char path[64], name[PATH_MAX];
  struct machine m = MACHINE(halt_code);
  CHECK(realpath("/dev/../dev/kvm", name) && !strcmp(name, "/dev/kvm"));
  char *own = realpath("/dev/kvm", NULL);
  CHECK(own && !strcmp(own, "/dev/kvm"));
  free(own);
  CHECK_ERRNO(readlink("/dev/kvm", name, sizeof(name)), EINVAL);
  const struct {
    int fd;
    const char *name;
  } links[] = {{m.kvm, "/dev/kvm"}, {m.vm, "anon_inode:kvm-vm"}, {m.vcpu, "anon_inode:kvm-vcpu:0"}};
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof(path), "/proc/self/fd/%d", links[i].fd);
    ssize_t n = readlink(path, name, sizeof(name));
    CHECK(n == (ssize_t)strlen(links[i].name) && !memcmp(name, links[i].name, (size_t)n));
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), links[i].fd);
    CHECK(readlink(path, name, 4) == 4 && !memcmp(name, links[i].name, 4));
  }
  snprintf(path, sizeof(path), "/proc/self/fd/%d", m.kvm);
  int again = open(path, O_RDWR);
  CHECK(again >= 0 && IS_KVM(again));
  snprintf(path, sizeof(path), "/dev/fd/%d", m.vm);
  CHECK_ERRNO(open(path, O_RDWR), ENXIO);
  CHECK(readlink("/proc/self/exe", name, sizeof(name)) > 0);
}

static bool has_word(const char *line, const char *word) {
  const char *p = strstr(line, word);
  return p && p[-1] == ' ' && (p[strlen(word)] == ' ' || p[strlen(word)] == '\n');
}

static void cpuinfo(void) {
  char line[16384];
  unsigned processors = 0, flags = 0;
  FILE *f = fopen("/proc/cpuinfo", "r");
  CHECK(f);
  while (fgets(line, sizeof(line), f)) {
    processors += !strncmp(line, "processor\t", 10);
    if (strncmp(line, "flags\t", 6)) continue;
    flags++;
    CHECK(has_word(line, "vmx") != has_word(line, "svm"));
    CHECK(has_word(line, "fpu"));
  }
  CHECK(processors == flags && (long)processors >= sysconf(_SC_NPROCESSORS_ONLN));
  fclose(f);
  CHECK_ERRNO(open("/proc/cpuinfo", O_RDWR), EACCES);
}

/* As the kernel's selftests ask: the paging of one of the two vendors. */
static void parameters(void) {
  char c = 0;
  struct stat st;
  int fd = open("/sys/module/kvm_intel/parameters/ept", O_RDONLY);
  if (fd < 0) fd = open("/sys/module/kvm_amd/parameters/npt", O_RDONLY);
  CHECK(fd >= 0 && read(fd, &c, 1) == 1 && c == 'Y');
  close(fd);
  CHECK(stat("/sys/module/kvm/parameters/ignore_msrs", &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0444);
  CHECK(access("/sys/module/kvm/parameters/ignore_msrs", R_OK) == 0);
  CHECK_ERRNO(access("/sys/module/kvm/parameters/ignore_msrs", W_OK), EACCES);
}

/* Root may think that it has changed the node, nobody has; it exists already. */
static void owner(void) {
  CHECK(chown("/dev/kvm", (uid_t)-1, (gid_t)-1) == 0);
  CHECK(lchown("/dev/../dev/kvm", (uid_t)-1, (gid_t)-1) == 0);
  CHECK(fchownat(AT_FDCWD, "/dev/kvm", (uid_t)-1, (gid_t)-1, AT_SYMLINK_NOFOLLOW) == 0);
  CHECK_ERRNO(mknod("/dev/kvm", S_IFCHR | 0666, makedev(10, 232)), EEXIST);
  CHECK_ERRNO(mknodat(AT_FDCWD, "/dev/kvm", S_IFCHR | 0666, makedev(10, 232)), EEXIST);
  CHECK_ERRNO(getxattr("/dev/kvm", "system.posix_acl_access", NULL, 0), ENODATA);
  CHECK_ERRNO(lremovexattr("/dev/kvm", "system.posix_acl_access"), ENODATA);
  if (geteuid()) {
    CHECK_ERRNO(setxattr("/dev/kvm", "system.posix_acl_access", "", 0, 0), EPERM);
    CHECK_ERRNO(chown("/dev/kvm", geteuid(), (gid_t)-1), EPERM);
    CHECK_ERRNO(chmod("/dev/kvm", 0600), EPERM);
  }
  char path[] = "/tmp/uvirt-owner.XXXXXX";
  int fd = mkstemp(path);
  struct stat st;
  CHECK(fd >= 0 && chmod(path, 0640) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0640);
  CHECK(chown(path, geteuid(), (gid_t)-1) == 0 && fchmodat(AT_FDCWD, path, 0600, 0) == 0);
  CHECK(unlink(path) == 0 && close(fd) == 0);
}

int main(void) {
  owner();
  node();
  objects();
  may_open();
  names();
  cpuinfo();
  parameters();
  return 0;
}
