/** Runs `bench typing` on both deployments, with each prompt order and context, with and without reuse. */
import { run } from '../harness/run.ts';
import { prepareModel, repoName, withSystems } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/deployment.ts';
import { openModel } from '../system/model.ts';
import type { TypingOptions } from './command.ts';
import { measureTyping, type TypingResult, type TypingRun, type WarmUpRun } from './measure.ts';
import { measurePredicted } from './predicted.ts';
import { TYPING } from './report.ts';
import { loadSession } from './session.ts';
import { measureWarmUps } from './warm-up.ts';

const PLAN = { deployments: BOTH, pinning: 'split' } as const;

export async function runTyping(options: TypingOptions): Promise<Artifact<TypingResult>> {
  if (options.engine === 'scripted') return runScripted(options);
  const prepared = await prepareModel(onlyModel(options), options);
  const { pace, debounceMs, outputTokens, timeoutMs } = options;
  const session = await loadSession(options.path, options.keystrokes);
  const plan = { models: [prepared.model], settings: { ...options, pinning: PLAN.pinning } };
  return run(TYPING, options, plan, async (onProgress) => {
    const common = { pace, debounceMs, outputTokens, repo: repoName(options), timeoutMs };
    const runs: TypingRun[] = [];
    const warmUps: WarmUpRun[] = [];
    for (const promptOrder of options.promptOrders) {
      await withSystems(options, prepared, { ...PLAN, promptOrder }, async (systems) => {
        for (const { name, url } of systems) {
          for (const context of options.contexts) {
            if (pace === 'warm-up') {
              onProgress(`${name}, ${promptOrder}, ${context}, after a warm-up and after an answer`);
              warmUps.push(await measureWarmUps(url, name, session, { ...common, context, promptOrder }));
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
    return { model: prepared.model.name, options: common, runs, ...(pace === 'warm-up' && { warmUps }) };
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
