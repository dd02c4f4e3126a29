/** Runs another `llavacode` command in a process of its own. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execaNode } from 'execa';
import type { IndexReport } from '../../services/indexer/index-run.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

export const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');

/**
 * Runs `llavacode` with the given arguments; its output goes to the terminal.
 * @param signal ends it.
 * @throws ServingError internal if it fails; the signal's reason.
 */
export async function runCli(args: readonly string[], signal?: AbortSignal): Promise<void> {
  const options = { stdio: ['ignore', 2, 2], reject: false, ...(signal && { cancelSignal: signal }) } as const;
  const { exitCode } = await execaNode(CLI, args, options);
  signal?.throwIfAborted();
  if (exitCode !== 0) {
    throw new ServingError(
      'internal',
      `llavacode ${args.join(' ')} failed with exit code ${exitCode}: its message is above`,
    );
  }
}

export interface IndexTarget {
  /** Folder of the bundle. */
  readonly bundle: string;
  /** URL of the store. */
  readonly store: string;
  /** Name of the repository in the index, and its folder. */
  readonly repo: string;
  readonly path: string;
}

/** Runs `llavacode index`. */
export async function runIndexCommand({ bundle, store, repo, path }: IndexTarget, more: readonly string[] = []) {
  await runCli(['index', '--name', repo, '--path', path, '--model', bundle, '--store', store, ...more]);
}

/**
 * Runs `llavacode index` and reads its report.
 * @param json file that the report is written to.
 */
export async function reportedIndex(command: IndexTarget, threads: number, json: string): Promise<IndexReport> {
  await runIndexCommand(command, ['--threads', String(threads), '--json', json]);
  return JSON.parse(await readFile(json, 'utf8')) as IndexReport;
}
