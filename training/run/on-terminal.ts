/** How a command of training runs on the terminal: its progress on stderr, its end, and what Ctrl-C does. */
import { writeFile } from 'node:fs/promises';
import { Interrupted, interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { type Progress, startProgress } from '../../services/lib/process/progress.ts';

/**
 * What a command that is stopped may take to keep what it has done, in ms: a checkpoint of 200 MB on a disk that writes
 * 10 MB/s, and less than the 30 s after which Kubernetes kills a container.
 */
const STOP_MS = 25_000;
/** Where nobody watches, such as under nohup, a command says so often where it stands: 120 lines an hour. */
const LINES_EVERY_MS = 30_000;

/**
 * Runs a command with progress on stderr. Where Ctrl-C or SIGTERM stops it, the task keeps what it has done, and people
 * are told how to go on; after 25 s, or at a second Ctrl-C, the process ends without.
 * @param first what the progress shows first
 * @param to folder in which the command's work is kept
 * @param json file for what the task returns
 * @throws what the task throws; ServingError path_unusable for the file.
 */
export async function onTerminal<T>(
  first: string,
  { to, json }: { readonly to: string; readonly json: string | undefined },
  task: (progress: Progress, signal: AbortSignal) => Promise<T>,
): Promise<void> {
  const progress = startProgress(first, { linesEveryMs: LINES_EVERY_MS });
  const next = `the same command goes on with what is kept in --to ${to}`;
  const onLate = () => progress.warn(`not ended within ${STOP_MS / 1000} s, so its last work is not kept: ${next}`);
  try {
    const report = await task(progress, interruption({ ms: STOP_MS, onLate }));
    if (json === undefined) return;
    await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(report, null, 2)}\n`));
  } catch (error) {
    progress.fail();
    if (error instanceof Interrupted) progress.warn(`${error.message}: ${next}`);
    throw error;
  }
}
