/** How processes of the product end for certain: whatever a native library does, and whoever started them. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** Time that an exiting process gets to be gone before it is killed, in ms. */
const EXIT_LIMIT_MS = 5_000;
/** Pause between two looks at another process, in ms. */
const POLL_MS = 100;

/**
 * Makes sure that this process is gone soon after it has begun to exit. `process.exit` joins the threads of libuv's
 * pool, and a thread that waits inside a native library (lmdb's writer on a full disk) never comes back. A shell
 * waits beside the process and kills it then; it does nothing where the process is no longer its parent.
 */
export function killIfExitHangs(limitMs = EXIT_LIMIT_MS): void {
  process.once('exit', () => {
    const { pid } = process;
    // Field 4 of /proc/PID/stat is the parent: 1, or a reaper, once the process is gone. `sh` has no space in its name.
    const isParent = `read _ _ _ parent _ < /proc/$$/stat && [ "$parent" = ${pid} ] || exit 0`;
    const script = `i=0; while [ $i -lt ${Math.ceil(limitMs / POLL_MS)} ]; do
      sleep ${POLL_MS / 1000}; ${isParent}; i=$((i + 1)); done; kill -9 ${pid}`;
    spawn('/bin/sh', ['-c', script], { detached: true, stdio: 'ignore' })
      .on('error', () => {})
      .unref();
  });
}

/**
 * A signal that is aborted when the process that started this one is gone, or the one that started that one: `npm
 * start` and `npx` run a command in a shell, end on a signal and pass nothing on. Without /proc only the end of the
 * parent itself is seen.
 * @param reason the reason of the abort.
 */
export function orphaned(reason: unknown): AbortSignal {
  const gone = new AbortController();
  const family = () => `${process.ppid} ${parentOf(process.ppid) ?? ''}`;
  const atFirst = family();
  const timer = setInterval(() => {
    if (family() === atFirst) return;
    clearInterval(timer);
    gone.abort(reason);
  }, POLL_MS);
  timer.unref();
  return gone.signal;
}

function parentOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]; // the name in front may hold anything
  } catch {
    return undefined;
  }
}
