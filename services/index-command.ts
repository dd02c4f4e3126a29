/**
 * `llavacode index`: brings a working tree into an index, once, or with --watch again whenever it changes. The running
 * system indexes it; where a store is named, this process does.
 */
import { bundleOf } from './checkpoint-bundle.ts';
import { apiKeyOf } from './client.ts';
import { showProgress, summary } from './index-report.ts';
import { gitRemote } from './indexer/git-remote.ts';
import type { IndexReport } from './indexer/index-run.ts';
import { INDEX_CLIENT_SETTINGS } from './indexer/settings.ts';
import type { Sources } from './indexer/sources.ts';
import { storeTarget } from './indexer/store-target.ts';
import { TreeAway } from './indexer/tree.ts';
import { type IndexTarget, treeIndexer } from './indexer/tree-indexer.ts';
import type { IndexJob } from './indexer/version-builder.ts';
import { watchTree } from './indexer/watch.ts';
import { contextLack, filesOf, openBundle } from './lib/model/bundle/bundle.ts';
import { FileGuard } from './lib/model/bundle/integrity.ts';
import { flagName } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import { interruption } from './lib/process/interrupt.ts';
import { type Progress, startProgress } from './lib/process/progress.ts';
import { openContextEncoder } from './lib/rag/encode/device-encoder.ts';
import { openStore } from './lib/rag/store/open-store.ts';
import { DEFAULT_TENANT, repoKey } from './lib/rag/store/repo-key.ts';
import { assertFolder, repositoryName } from './preflight.ts';
import { GatewayTarget } from './repo-client.ts';
import { INDEX_COMMAND_SETTINGS, type IndexCommandConfig } from './settings.ts';

/** Settings that say which files are sent; all others of an index are those of the system that indexes. */
const OF_THE_SENDER: readonly string[] = ['maxFileBytes', 'defaultExcludes', ...Object.keys(INDEX_CLIENT_SETTINGS)];

export interface IndexCommand {
  /** The default tenant if undefined. */
  readonly tenant: string | undefined;
  /** The tenant's name for the repository; that of the folder if undefined. */
  readonly repo: string | undefined;
  readonly dir: string;
  readonly watch: boolean;
  /** Whether an empty tree may replace an index with files. */
  readonly allowEmpty: boolean;
}

/**
 * Refuses flags that would have no effect: without a store the running system decides.
 * @param flags what stands on the command line. Variables and the file may serve other commands, too.
 * @throws ServingError config_invalid.
 */
export function assertEffective({ store }: IndexCommandConfig, flags: Readonly<Record<string, unknown>>): void {
  if (store !== undefined) return;
  const idle = Object.keys(flags).filter(
    (name) => (name in INDEX_COMMAND_SETTINGS || name === 'tenant') && !OF_THE_SENDER.includes(name),
  );
  const given = idle.filter((name) => flags[name] !== undefined).map(flagName);
  if (given.length === 0) return;
  throw new ServingError(
    'config_invalid',
    `${given.join(', ')}: without --store the running system at --url indexes, with settings of its own and for the ` +
      "key's tenant. Leave this out, or name a --store",
  );
}

/**
 * @returns the report of the last run.
 * @throws ServingError; Interrupted. The version that was served before stays.
 */
export async function runIndex(config: IndexCommandConfig, command: IndexCommand): Promise<IndexReport | undefined> {
  const { dir, watch, allowEmpty, repo: name = repositoryName(dir) } = command;
  await assertFolder(`--path ${dir}`, dir);
  const repo = repoKey(command.tenant ?? DEFAULT_TENANT, name);
  const remoteUrl = await gitRemote(dir);
  const stop = interruption();
  const progress = startProgress(config.store === undefined ? `asking ${config.url}` : 'opening the model');
  const closers: (() => unknown)[] = [];
  try {
    const target =
      config.store === undefined
        ? await remoteTarget(config, { name, remoteUrl }, progress, stop)
        : await localTarget({ ...config, store: config.store }, { repo, remoteUrl }, progress, stop, closers);
    let report: IndexReport | undefined;
    const index = treeIndexer(dir, config, {
      files: () => target.files(),
      index: async (sources: Sources) => {
        progress.start(`indexing ${dir} as ${repo}`);
        report = await target.index(sources);
        progress.succeed(summary(report));
        return report;
      },
    });
    if (watch) {
      const onFailure = (failure: ServingError) => progress.warn(saidOf(failure));
      let first = allowEmpty;
      const indexNext: typeof index = (changed, mayBeEmpty) => {
        const empty = first || mayBeEmpty;
        first = false;
        return index(changed, empty);
      };
      await watchTree({ dir, selecting: config, index: indexNext, onFailure, signal: stop });
    } else await index(undefined, allowEmpty);
    return report;
  } catch (error) {
    progress.fail();
    throw error;
  } finally {
    for (const close of closers.toReversed()) await close();
  }
}

/** What a person is told of a failure that a watch goes on after. */
function saidOf(failure: ServingError): string {
  const { message, kind } = failure;
  if (failure instanceof TreeAway) return `${message}; the index stays as it is, and the folder is looked for`;
  return kind.retryable ? `${message}; trying again` : `changes in part of the tree may go unseen: ${message}`;
}

/** The index behind a running gateway. */
async function remoteTarget(
  config: IndexCommandConfig,
  { name: repo, remoteUrl }: { readonly name: string; readonly remoteUrl: string | undefined },
  progress: Progress,
  signal: AbortSignal,
): Promise<IndexTarget> {
  const { url } = config;
  const target = new GatewayTarget({
    url,
    apiKey: await apiKeyOf(config),
    repo,
    remoteUrl,
    signal,
    otherwise: ', or index in this process with --store STORE --model MODEL',
    onSending: (sent, files) => progress.update(`${repo} sending ${sent} of ${files} files to ${url}`),
    onProgress: showProgress(progress, repo),
  });
  await target.files(); // whether it can be reached is known before anything is read
  return target;
}

/** The index in a store that this process writes. */
async function localTarget(
  config: IndexCommandConfig & { readonly store: string },
  { repo, remoteUrl }: Pick<IndexJob, 'repo' | 'remoteUrl'>,
  progress: Progress,
  signal: AbortSignal,
  closers: (() => unknown)[],
): Promise<IndexTarget> {
  const { model } = config;
  if (model === undefined) {
    throw new ServingError('config_invalid', '--model (LLAVACODE_MODEL): is required with --store');
  }
  const dir = await bundleOf({ ...config, model }, (text) => progress.update(text));
  const bundle = await openBundle(dir, config);
  const files = new FileGuard({ info: () => {}, warn: (_, text) => progress.warn(text), error: () => {} });
  files.serveFrom(bundle.dir, filesOf(bundle.manifest, ['encoder', 'projector', 'tokenizer']));
  const lack = contextLack(bundle.manifest);
  if (lack) progress.warn(lack);
  else progress.start('loading the encoder');
  const encoder = await openContextEncoder(bundle, config, {
    warn: ({ provider, reason }, text) => progress.warn(`${text}: ${provider}: ${reason}`),
  });
  closers.push(() => encoder.dispose());
  await files.settled();
  const store = await openStore(config.store, 'indexing', { warn: (_, text) => progress.warn(text) });
  closers.push(() => store.close());
  const onProgress = showProgress(progress, repo);
  return storeTarget({ repo, remoteUrl, store, encoder, options: config, signal, onProgress });
}
