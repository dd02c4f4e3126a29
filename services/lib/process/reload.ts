/**
 * Files that a running process reads again when they change: keys and certificates. What they held before stays in use
 * while they are wrong, so that a mistake in a file takes nothing down.
 *
 * Changes are heard from the file system, which is quick; the files are also compared every {@link LOOK_EVERY_MS},
 * because not every file system tells (network mounts do not). Kubernetes swaps a link above the files of a Secret, so
 * that all of them change at one moment; other tools write one file after the other. Files therefore count as they are
 * when nothing has changed for {@link QUIET_MS}, and as a set: what was read must be the same after it was checked.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { watch } from 'chokidar';
import { ServingError } from './errors.ts';
import type { Lifecycle } from './lifecycle.ts';
import type { Logger } from './log.ts';
import { metrics } from './metrics.ts';

export interface Reloadable {
  /** The set of files in logs and metrics. */
  readonly name: 'api_keys' | 'tls' | 'rpc_tls';
  /** Paths; empty ones do not count, and nothing is watched where there is no other. */
  readonly files: readonly string[];
  /**
   * Reads the files, checks them, and from then on uses them. It must change nothing before all of them are checked.
   * @returns what the log says of them, which must not be secret.
   * @throws ServingError config_invalid
   */
  readonly reload: () => Promise<object>;
}

interface ReloadOptions {
  readonly quietMs?: number;
  readonly lookEveryMs?: number;
}

/** Files have settled when none has changed for this long, in ms. */
const QUIET_MS = 200;
/** How often files are compared whose changes nobody told, in ms. */
const LOOK_EVERY_MS = 10_000;
/** How often files are read that change while they are checked; then they are left to the next look. */
const READS = 5;

/**
 * Follows the files until the process drains. SIGHUP has them read again at once, also if they have not changed. They
 * have been loaded before; whatever has changed since is seen at once.
 */
export async function reloadOnChange(
  { name, files: given, reload }: Reloadable,
  life: Pick<Lifecycle, 'draining' | 'onHangup'>,
  log: Pick<Logger, 'info' | 'warn' | 'error'>,
  { quietMs = QUIET_MS, lookEveryMs = LOOK_EVERY_MS }: ReloadOptions = {},
): Promise<void> {
  const files = given.filter((path) => path !== '');
  if (files.length === 0 || life.draining.aborted) return;
  metrics.reloadFailures.inc({ files: name }, 0);
  /** What the files held when they were last tried, and whether that was wrong. */
  let tried: string | undefined;
  let failed = false;
  const attempt = async (isAsked: boolean) => {
    for (let reads = 0; reads < READS; reads++) {
      const found = await digestOf(files);
      if (life.draining.aborted) return;
      const isNew = found !== tried;
      // What was wrong may become right by itself, such as a certificate that is not valid yet.
      if (!isNew && !failed && !isAsked) return;
      const isFirst = tried === undefined;
      const fault = await reload().then(
        (fields) => void (isFirst || log.info({ ...fields, files }, `${name}: read again, and in use`)),
        (error: unknown) => ServingError.from(error),
      );
      if (found !== (await digestOf(files))) continue;
      tried = found;
      failed = fault !== undefined;
      if (fault === undefined) return succeeded(name);
      if (!isNew && !isAsked) return; // said before
      metrics.reloadFailures.inc({ files: name });
      log.error({ err: fault, files }, `${name}: the files are wrong, so what they held before stays in use`);
      return;
    }
  };
  let running = Promise.resolve();
  const look = (isAsked = false) => {
    running = running.then(() => attempt(isAsked)).catch((err) => log.error({ err, files }, `${name}: not read again`));
    return running;
  };
  let settling: NodeJS.Timeout | undefined;
  const watcher = watch([...files], { ignoreInitial: true }).on('all', () => {
    clearTimeout(settling);
    settling = setTimeout(() => look(), quietMs);
  });
  watcher.on('error', (err) => log.warn({ err, files }, `${name}: changes are seen within ${lookEveryMs} ms only`));
  const looking = setInterval(() => look(), lookEveryMs);
  life.onHangup(() => look(true));
  life.draining.addEventListener(
    'abort',
    () => {
      clearTimeout(settling);
      clearInterval(looking);
      void watcher.close();
    },
    { once: true },
  );
  await look();
}

function succeeded(name: Reloadable['name']): void {
  metrics.reloadSuccess.set({ files: name }, Date.now() / 1_000);
}

/** One digest of all that the files hold; a file that cannot be read counts as that. */
async function digestOf(files: readonly string[]): Promise<string> {
  const contents = await Promise.all(
    files.map((path) => readFile(path).catch(({ code }: NodeJS.ErrnoException) => Buffer.from(`unreadable: ${code}`))),
  );
  const digests = contents.map((content) => createHash('sha256').update(content).digest('hex'));
  return digests.join(' ');
}
