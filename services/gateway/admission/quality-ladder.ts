/**
 * The quality ladder (--quality-ladder): under load a request gets its context in fewer tokens, rather than late or not
 * at all. It steps down from text to the best chunks as text and the others as soft tokens, and from there to soft
 * tokens alone. Nothing steps up: what was asked for is the most that is given.
 *
 * What decides is how long this tenant's next prompt waits by the fair queue. A tenant that fills the queue therefore
 * steps down itself, and others keep what they ask for. A request that is refused all the same, because many came at
 * once or others took its place, comes back one step below until it is let in or there is none.
 *
 * A request that hopes for a first token sooner than the gateway's target steps down sooner, alone: the tenant's level
 * stays what the target makes it.
 */
import { ServingError } from '../../lib/process/errors.ts';
import type { CompletionRequest, RagMode } from '../request.ts';

/** The modes of context from the most tokens to the fewest. */
const STEPS = ['text', 'mixed', 'compressed'] as const satisfies readonly RagMode[];
type Step = (typeof STEPS)[number];

/** Number of steps down. */
type Level = 0 | 1 | 2;

/**
 * Shares of the target TTFT: a tenant goes down to a level where its next prompt waits so long, and leaves the level
 * where it waits less than the second share. The first is half of the time that a prompt may wait at all, so that the
 * tokens which are saved still keep others in time; between the two shares nothing changes, because prompts that step
 * down make the wait shorter, and every change of mode costs an editor its cached prompt.
 */
const DOWN_AT = [0.5, 0.75] as const;
const UP_BELOW = [0.25, 0.5] as const;

/**
 * The level that follows a level.
 * @param load expected wait, as a share of the target TTFT.
 */
function nextLevel(level: Level, load: number): Level {
  let next = level;
  while (next < 2 && load >= DOWN_AT[next as 0 | 1]) next = (next + 1) as Level;
  while (next > 0 && load < UP_BELOW[(next - 1) as 0 | 1]) next = (next - 1) as Level;
  return next;
}

/** The mode that a request gets which asks for `asked`. */
function stepDown(asked: RagMode, level: number): RagMode {
  const step = STEPS.indexOf(asked as Step);
  return step < 0 ? asked : STEPS[Math.max(step, level)]!;
}

/** The mode below; undefined where there is none. */
function modeBelow(mode: RagMode): RagMode | undefined {
  const step = STEPS.indexOf(mode as Step);
  return step < 0 ? undefined : STEPS[step + 1];
}

interface LadderOptions {
  readonly targetTtftMs: number;
  /** Time until it would be the turn of a tenant's prompt that came now, in ms. */
  readonly waitMs: (tenant: string, priority: number) => number;
}

export class QualityLadder {
  readonly #options: LadderOptions;
  /** Of tenants that are on a lower level. Tenants are named in the file of keys: there is a bounded number. */
  readonly #levels = new Map<string, Level>();

  constructor(options: LadderOptions) {
    this.#options = options;
  }

  /** The request as it is tried first. */
  begin(request: CompletionRequest, tenant: string): CompletionRequest {
    const { rag, priority, ttftGoalMs = Infinity } = request;
    if (rag === undefined) return request;
    const { targetTtftMs } = this.#options;
    const waitMs = this.#options.waitMs(tenant, priority);
    const level = nextLevel(this.#levels.get(tenant) ?? 0, waitMs / targetTtftMs);
    if (level === 0) this.#levels.delete(tenant);
    else this.#levels.set(tenant, level);
    const hoped = nextLevel(0, waitMs / ttftGoalMs);
    return withMode(request, stepDown(rag.mode, Math.max(hoped, level)));
  }

  /** The request as it is tried after a refusal; undefined for other failures, and where there is no step below. */
  below(request: CompletionRequest, error: unknown): CompletionRequest | undefined {
    const below = request.rag && modeBelow(request.rag.mode);
    if (below === undefined || !(error instanceof ServingError) || error.code !== 'saturated') return undefined;
    return withMode(request, below);
  }
}

function withMode(request: CompletionRequest, mode: RagMode): CompletionRequest {
  const { rag } = request;
  if (rag === undefined || rag.mode === mode) return request;
  return { ...request, rag: { ...rag, mode, askedMode: rag.askedMode ?? rag.mode } };
}
