/** The benches that look at one thing: interference, retrieval, index, typing. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { PromptOrder } from '../../services/lib/text/prompt.ts';
import { type IndexResult, type IndexRun, measureIndex } from '../indexing.ts';
import {
  type InterferenceOptions,
  type InterferenceResult,
  type InterferenceRun,
  idleTtft,
  measureInterference,
} from '../interference.ts';
import type { Artifact } from '../report/artifact.ts';
import { measureRetrieval, type RetrievalResult } from '../retrieval.ts';
import { parseCores } from '../system/cores.ts';
import type { ContextMode } from '../system/prompts.ts';
import { COLOCATED, DISAGGREGATED } from '../system/system.ts';
import { loadSession, measureTyping, type TypingOptions, type TypingResult, type TypingRun } from '../typing.ts';
import {
  type BenchOptions,
  type PreparedModel,
  prepareModel,
  refuseUrl,
  repoName,
  systemSettings,
  withSystems,
} from './context.ts';
import { run } from './run.ts';

const BOTH = [COLOCATED, DISAGGREGATED];

/** Of the windows, where nothing else is said: this long, or time for so many prompts. */
const WINDOW = { leastMs: 20_000, prompts: 8 };

/**
 * @param interference without a windowMs: as long as it takes.
 * @param everyMs between two prompts; undefined: one and a half times what the slower deployment takes for one.
 */
export async function runInterference(
  options: BenchOptions,
  modelName: string,
  interference: Omit<InterferenceOptions, 'windowMs'> & Partial<Pick<InterferenceOptions, 'windowMs'>>,
  everyMs?: number,
): Promise<Artifact<InterferenceResult>> {
  const prepared = await prepareModel(modelName, options);
  const { model, prompts } = prepared;
  const settings = { ...systemSettings(options), ...interference, pinning: 'split' };
  return run(options, { bench: 'interference', models: [model], settings }, (onProgress) =>
    withSystems(options, prepared, { deployments: BOTH, pinning: 'split' }, async (systems) => {
      onProgress('prompts on idle systems');
      const idle: number[] = [];
      for (const { url } of systems) idle.push(await idleTtft(url, prompts, interference));
      const every = everyMs ?? 1.5 * Math.max(...idle);
      const windowMs = interference.windowMs ?? Math.max(WINDOW.leastMs, WINDOW.prompts * every);
      const how = { ...interference, windowMs };
      const runs: InterferenceRun[] = [];
      for (const { name, url } of systems) {
        onProgress(name);
        runs.push(await measureInterference(url, name, prompts, how, every));
      }
      return { model: model.name, options: how, everyMs: every, runs };
    }),
  );
}

export async function runRetrieval(
  options: BenchOptions,
  retrieval: {
    readonly sizes: readonly number[];
    readonly queries: number;
    readonly topK: number;
    readonly redis?: string;
  },
): Promise<Artifact<RetrievalResult>> {
  refuseUrl(options, 'retrieval', 'the stores alone');
  return run(
    options,
    { bench: 'retrieval', models: [], settings: { ...systemSettings(options), ...retrieval, redis: undefined } },
    async (onProgress) => {
      const { sizes, redis } = retrieval;
      const how = { dir: options.path, topK: retrieval.topK, queries: retrieval.queries, seed: options.seed };
      const scratch = await mkdtemp(join(options.data, 'retrieval-'));
      try {
        onProgress('embedded');
        const embedded = await measureRetrieval(`lmdb:${scratch}`, sizes, how);
        if (redis === undefined)
          return { topK: how.topK, runs: embedded, notRun: ['Redis was not measured: no `--redis URL` was given.'] };
        onProgress('redis');
        return { topK: how.topK, runs: [...embedded, ...(await measureRetrieval(redis, sizes, how))], notRun: [] };
      } finally {
        await rm(scratch, { recursive: true, force: true });
      }
    },
  );
}

export async function runIndexing(
  options: BenchOptions,
  modelNames: readonly string[],
): Promise<Artifact<IndexResult>> {
  refuseUrl(options, 'index', 'the indexer alone');
  const prepared: PreparedModel[] = [];
  for (const name of modelNames) prepared.push(await prepareModel(name, options));
  const threads = parseCores(options.cores).length;
  return run(
    options,
    { bench: 'index', models: prepared.map(({ model }) => model), settings: { ...systemSettings(options), threads } },
    async (onProgress) => {
      const runs: IndexRun[] = [];
      for (const { model } of prepared) {
        onProgress(model.name);
        const { data, path: dir } = options;
        runs.push(
          ...(await measureIndex({
            model: model.name,
            bundle: model.bundle,
            dir,
            repo: repoName(options),
            data,
            threads,
          })),
        );
      }
      return { runs };
    },
  );
}

export interface TypingPlan extends Pick<TypingOptions, 'pace' | 'debounceMs' | 'outputTokens'> {
  readonly contexts: readonly ContextMode[];
  readonly promptOrders: readonly PromptOrder[];
  /** Of the session, from its beginning; all of it when not given. */
  readonly keystrokes?: number;
}

export async function runTyping(
  options: BenchOptions,
  modelName: string,
  plan: TypingPlan,
): Promise<Artifact<TypingResult>> {
  const prepared = await prepareModel(modelName, options);
  const { contexts, promptOrders, keystrokes, ...typing } = plan;
  const session = await loadSession(options.path, keystrokes);
  return run(
    options,
    { bench: 'typing', models: [prepared.model], settings: { ...systemSettings(options), ...plan, pinning: 'split' } },
    async (onProgress) => {
      const common = { ...typing, repo: repoName(options), timeoutMs: options.timeoutMs };
      const runs: TypingRun[] = [];
      for (const promptOrder of promptOrders) {
        await withSystems(options, prepared, { deployments: BOTH, pinning: 'split', promptOrder }, async (systems) => {
          for (const { name, url } of systems) {
            for (const context of contexts) {
              for (const reuse of [true, false]) {
                onProgress(`${name}, ${promptOrder}, ${context}${reuse ? '' : ', nothing reused'}`);
                runs.push(await measureTyping(url, name, session, { ...common, context, promptOrder, reuse }));
              }
            }
          }
        });
      }
      return { model: prepared.model.name, options: common, runs };
    },
  );
}
