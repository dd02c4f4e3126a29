/** Runs `bench typing` on both deployments, with each prompt order and context, with and without reuse. */
import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { run } from '../harness/run.ts';
import { assertNoUrl, prepareModel, repoName, withSystems } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/deployment.ts';
import { openModel } from '../system/model.ts';
import type { TypingOptions } from './command.ts';
import { measureTyping, type RestartRun, type TypingResult, type TypingRun, type WarmUpRun } from './measure.ts';
import { measurePredicted } from './predicted.ts';
import { TYPING } from './report.ts';
import { measureRestarts } from './restart.ts';
import { loadSession } from './session.ts';
import { measureWarmUps } from './warm-up.ts';

const PLAN = { deployments: BOTH, pinning: 'split' } as const;

export async function runTyping(options: TypingOptions): Promise<Artifact<TypingResult>> {
  if (options.engine === 'scripted') return runScripted(options);
  if (options.pace === 'restart') assertNoUrl(options, 'typing --pace restart', 'workers that it kills itself');
  const prepared = await prepareModel(onlyModel(options), options);
  const { pace, debounceMs, outputTokens, timeoutMs, kvDiskPrecision } = options;
  const session = await loadSession(options.path, options.keystrokes);
  const plan = { models: [prepared.model], settings: { ...options, pinning: PLAN.pinning } };
  return run(TYPING, options, plan, async (onProgress) => {
    const kvDiskDir = resolve(options.data, `kv-${randomUUID()}`);
    const onDisk = pace === 'restart' && { kvDiskPrecision };
    const workers = onDisk ? { kvDiskDir, kvDiskPrecision } : undefined;
    const common = { pace, debounceMs, outputTokens, repo: repoName(options), timeoutMs, ...onDisk };
    const runs: TypingRun[] = [];
    const warmUps: WarmUpRun[] = [];
    const restarts: RestartRun[] = [];
    for (const promptOrder of options.promptOrders) {
      await withSystems(options, prepared, { ...PLAN, promptOrder, workers }, async (systems) => {
        for (const { name, url, processes } of systems) {
          for (const context of options.contexts) {
            if (pace === 'warm-up') {
              onProgress(`${name}, ${promptOrder}, ${context}, after a warm-up and after an answer`);
              warmUps.push(await measureWarmUps(url, name, session, { ...common, context, promptOrder }));
              continue;
            }
            if (pace === 'restart') {
              onProgress(`${name}, ${promptOrder}, ${context}, with and without a restart`);
              restarts.push(await measureRestarts(url, name, processes, session, { ...common, context, promptOrder }));
              continue;
            }
            for (const reuse of [true, false]) {
              onProgress(`${name}, ${promptOrder}, ${context}${reuse ? '' : ', nothing reused'}`);
              runs.push(await measureTyping(url, name, session, { ...common, context, promptOrder, reuse }));
            }
          }
        }
      });
    }
    await rm(kvDiskDir, { recursive: true, force: true });
    const pairs = { ...(pace === 'warm-up' && { warmUps }), ...(pace === 'restart' && { restarts }) };
    return { model: prepared.model.name, options: common, runs, ...pairs };
  });
}

/** Types the session with an engine that predicts it: the model gives its tokenizer only. */
async function runScripted(options: TypingOptions): Promise<Artifact<TypingResult>> {
  const model = await openModel(onlyModel(options), options);
  const { pace, debounceMs, outputTokens, timeoutMs } = options;
  const session = await loadSession(options.path, options.keystrokes);
  return run(TYPING, options, { models: [model], settings: options }, async (onProgress) => {
    onProgress('all variants at the same time');
    const predicted = await measurePredicted(model, session, options);
    return { model: model.name, options: { pace, debounceMs, outputTokens, repo: '', timeoutMs }, runs: [], predicted };
  });
}
