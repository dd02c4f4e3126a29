/** `bench typing`: an editing session, keystroke by keystroke. */
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { run } from '../harness/run.ts';
import { type BenchOptions, prepareModel, repoName, systemSettings, withSystems } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import type { ContextMode } from '../system/prompts.ts';
import { BOTH } from '../system/system.ts';
import { loadSession, measureTyping, type TypingOptions, type TypingResult, type TypingRun } from './measure.ts';

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
