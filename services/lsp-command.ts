/**
 * `llavacode lsp`: a language server on stdin and stdout. Completions come from a running gateway, which also indexes
 * the repository of an open document while the server runs.
 */
import { Console } from 'node:console';
import { apiKeyOf } from './client.ts';
import type { IndexReport } from './indexer/index-run.ts';
import { treeIndexer } from './indexer/tree-indexer.ts';
import { watchTree } from './indexer/watch.ts';
import { BUILD_INFO } from './lib/process/build-info.ts';
import { didYouMean, keyName } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { interruption } from './lib/process/interrupt.ts';
import type { CompletionSystem, Followed, IndexRun } from './lsp/query.ts';
import type { Repository } from './lsp/repository.ts';
import { serveEditor } from './lsp/server.ts';
import { LspGateway } from './lsp-gateway.ts';
import { repositoryName } from './preflight.ts';
import { GatewayTarget } from './repo-client.ts';
import { LSP_COMMAND_SETTINGS, type LspCommandConfig, loadConfig } from './settings.ts';

/** The exit code of a language server whose editor did not ask it to shut down first, as the protocol says. */
const EDITOR_GONE = 1;

/**
 * Serves until the editor or a signal ends the process.
 * @param flags and `file` what the command line and the file of --config say. What the editor sends stands above the
 *   file, and below variables and flags.
 * @throws ServingError config_invalid; the signal's reason.
 */
export async function runLsp(flags: Record<string, unknown>, file: Record<string, unknown>): Promise<void> {
  loadConfig(LSP_COMMAND_SETTINGS, flags, process.env, file); // a mistake in these is told before anything is served
  // stdout is the protocol's: a library that prints must not break into it.
  globalThis.console = new Console(process.stderr, process.stderr);
  // The editor is gone without a word, as when it is killed: nobody reads an answer, or a report of an error.
  process.stdout.on('error', () => process.exit(EDITOR_GONE));
  const signal = interruption();
  const stopped = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
  serveEditor({
    input: process.stdin,
    output: process.stdout,
    version: BUILD_INFO.version,
    open: async (options, note) => {
      const settings = { ...file, ...settingsOf(options) };
      return openSystem(loadConfig(LSP_COMMAND_SETTINGS, flags, process.env, settings), note);
    },
    signal,
  });
  await stopped;
}

/**
 * The settings that an editor sends, by name. Their keys are those of the configuration file.
 * @throws ServingError config_invalid, listing every problem.
 */
function settingsOf(options: unknown): Record<string, unknown> {
  if (options === undefined || options === null) return {};
  const refuse = (lines: readonly string[]) =>
    new ServingError('config_invalid', `initializationOptions:\n  ${lines.join('\n  ')}`);
  if (typeof options !== 'object' || Array.isArray(options)) throw refuse(['must be an object of settings']);
  const settings = new Map(Object.keys(LSP_COMMAND_SETTINGS).map((name) => [keyName(name), name]));
  const problems: string[] = [];
  const values: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(options)) {
    const name = settings.get(key) as keyof typeof LSP_COMMAND_SETTINGS | undefined;
    if (name === undefined) {
      problems.push(`${key} is not a setting${didYouMean(key, [...settings.keys()])}`);
      continue;
    }
    if (value === null) continue; // not given
    const parsed = LSP_COMMAND_SETTINGS[name].safeParse(value);
    if (parsed.success) values[name] = value;
    else problems.push(`${key}: ${parsed.error.issues.map(({ message }) => message).join('; ')}`);
  }
  if (problems.length > 0) throw refuse(problems);
  return values;
}

async function openSystem(config: LspCommandConfig, note: (text: string) => void): Promise<CompletionSystem> {
  const apiKey = await apiKeyOf(config);
  const gateway = new LspGateway({ ...config, apiKey, note });
  return {
    nameOf: (root) => config.repo || repositoryName(root),
    complete: (query, signal) => gateway.complete(query, signal),
    report: (id, outcome) => gateway.report(id, outcome),
    reported: () => gateway.reported(),
    follow: config.followRepository && config.ragMode !== 'off' ? follower(config, apiKey) : undefined,
  };
}

/** Files are sent in the first half of a run's progress, and indexed in the second. */
const HALF = 50;

/** Indexes a repository through the gateway, and whatever changes in it. Runs over all of it show their progress. */
const follower =
  (config: LspCommandConfig, apiKey: string): NonNullable<CompletionSystem['follow']> =>
  async ({ root, name }: Repository, { onRun, onFailure, signal }: Followed) => {
    let run: IndexRun | undefined;
    let report: IndexReport | undefined;
    const share = (done: number, all: number) => Math.floor((HALF * done) / Math.max(all, 1));
    const target = new GatewayTarget({
      url: config.url,
      apiKey,
      repo: name,
      signal,
      onSending: (sent, files) => run?.progress(`sending ${sent} of ${files} files`, share(sent, files)),
      onProgress: ({ files, filesRead, chunks }) =>
        run?.progress(`${filesRead} of ${files} files, ${chunks} chunks`, HALF + share(filesRead, files)),
    });
    const index = treeIndexer(root, config, {
      files: () => target.files(),
      index: async (sources) => {
        report = await target.index(sources);
        return report;
      },
    });
    const indexShown: typeof index = async (changed, mayBeEmpty) => {
      if (changed !== undefined) return index(changed, mayBeEmpty);
      run = onRun();
      try {
        const unreadable = await index(changed, mayBeEmpty);
        run.end(`${name} is indexed: ${report?.files ?? 0} files, ${report?.chunks ?? 0} chunks`);
        return unreadable;
      } catch (error) {
        run.end(ServingError.from(error));
        throw error;
      } finally {
        run = undefined;
      }
    };
    await target.files(); // whether the gateway can be reached is known before anything is read
    await watchTree({ dir: root, selecting: config, index: indexShown, onFailure, signal });
  };
