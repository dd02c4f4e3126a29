/**
 * The acceptance suite: asks a deployment for every route in every kind of case. It needs nothing but the deployment's
 * URL and a key, and leaves the deployment as it was. What a deployment does not offer, or the key may not do, is named
 * and is no failure.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { type Answer, ask, type Call, codeOf, excerpt, objectOf, type Target } from './call.ts';
import { callOf, type Known, ROUTES, type RouteCases } from './cases.ts';

/** The kinds of cases, which are columns of the table. */
export const KINDS = ['answers', 'streams', 'bad body', 'no key', 'wrong key', 'ended key', 'other method'] as const;
export type Kind = (typeof KINDS)[number];

export interface Verdict {
  readonly route: string;
  readonly kind: Kind;
  readonly outcome: 'passed' | 'failed' | 'not offered';
  /** Why it failed, or is not offered; '' for what passed. */
  readonly reason: string;
}

export interface AcceptanceResult {
  readonly url: string;
  readonly verdicts: readonly Verdict[];
  /** Routes of the deployment's own description that the suite has no case for: the deployment is newer than it. */
  readonly withoutCase: readonly string[];
}

/** Refusals that say what a deployment does not offer, and that others might. */
const NOT_OFFERED: Readonly<Record<string, string>> = {
  access_denied: 'the key has less access than the route needs',
  chat_unsupported: 'the model has no chat template',
  suffix_unsupported: 'the model does not fill in the middle',
  no_indexer: 'the deployment has no indexer',
  store_unavailable: 'the deployment has no store, or does not reach it',
};
/** Routes that are there with a setting alone. */
const OPTIONAL_ROUTES: Readonly<Record<string, string>> = {
  'GET /admin/api/live': '--admin-page is off',
  'GET /admin/api/repos': '--admin-page is off',
  'GET /admin/api/left-out': '--admin-page is off',
  'GET /slots': '--slots-route is off',
  'GET /v1/rollout': '--rollouts is off',
  'POST /v1/rollout': '--rollouts is off',
};

/** Ends a case without a verdict of its own: the deployment does not offer what it asks for. */
class NotOffered extends Error {}

/** What must hold for each kind of case. @throws AssertionError, NotOffered; undefined where there is no such case. */
type Case = (() => Promise<void>) | undefined;

/**
 * @param readOnly leaves out the routes that change the index.
 * @param onVerdict is called for each verdict as it comes.
 * @throws the target's signal's reason, after the repository of the suite was removed.
 */
export async function runAcceptance(
  target: Target,
  readOnly: boolean,
  onVerdict: (verdict: Verdict) => void = () => {},
): Promise<AcceptanceResult> {
  const repo = readOnly ? undefined : `acceptance-${randomBytes(4).toString('hex')}`;
  const known: Known = { model: '', completion: 'none', tokens: [], repo, tenant: undefined };
  const needsKeys = (await ask({ ...target, key: '' }, { method: 'GET', path: '/v1/models' })).status === 401;
  const verdicts: Verdict[] = [];
  try {
    for (const cases of ROUTES) {
      for (const kind of KINDS) {
        const run = caseOf(kind, cases, { target, known, needsKeys, readOnly });
        if (run === undefined) continue;
        const verdict = { route: cases.route, kind, ...(await judged(run, target.signal)) };
        verdicts.push(verdict);
        onVerdict(verdict);
      }
    }
  } finally {
    // Ctrl-C must not leave it behind either; a run that came to its end has removed it, which is no failure here.
    if (target.signal.aborted && repo !== undefined) {
      const signal = AbortSignal.timeout(target.timeoutMs);
      await ask({ ...target, signal }, { method: 'DELETE', path: `/v1/repos/${repo}` }).catch(() => {});
    }
  }
  return { url: target.url, verdicts, withoutCase: await routesWithoutCase(target) };
}

/** @throws the signal's reason. */
async function judged(run: NonNullable<Case>, signal: AbortSignal): Promise<Pick<Verdict, 'outcome' | 'reason'>> {
  try {
    await run();
    return { outcome: 'passed', reason: '' };
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof NotOffered) return { outcome: 'not offered', reason: error.message };
    return { outcome: 'failed', reason: (error as Error).message.split('\n')[0]! };
  }
}

interface Run {
  readonly target: Target;
  readonly known: Known;
  readonly needsKeys: boolean;
  readonly readOnly: boolean;
}

function caseOf(kind: Kind, cases: RouteCases, run: Run): Case {
  const { target, known, needsKeys } = run;
  const { route, open, writes, checkStream, body } = cases;
  if (writes && run.readOnly && kind !== 'other method') {
    return async () => {
      throw new NotOffered('the run only reads');
    };
  }
  const call = (change: Partial<Call> = {}): Call => ({ ...callOf(cases, known), ...change });
  const stranger =
    (key: string, code = 'invalid_api_key') =>
    async () => {
      if (!needsKeys) throw new NotOffered('the deployment has no keys');
      assertRefused(await ask({ ...target, key }, call()), 401, code);
    };
  switch (kind) {
    case 'answers':
      return async () => assertAnswered(await ask(target, call()), cases, known);
    case 'streams':
      if (!checkStream) return undefined;
      return async () => {
        const answer = await ask(target, callOf(cases, known, true));
        assertOffered(answer, route);
        assert.equal(answer.status, 200, `HTTP ${answer.status}: ${excerpt(answer.text)}`);
        checkStream(answer, known);
      };
    case 'bad body':
      if (body === undefined) return undefined;
      return async () => {
        const answer = await ask(target, call({ body: '{"prompt": ' }));
        assertOffered(answer, route);
        assertRefused(answer, 400, 'invalid_request');
      };
    case 'no key':
      return open ? undefined : stranger('');
    case 'wrong key':
      return open ? undefined : stranger(`wrong-${randomBytes(8).toString('hex')}`);
    case 'ended key':
      return open || !target.expiredKey ? undefined : stranger(target.expiredKey, 'api_key_expired');
    case 'other method':
      return async () => {
        const { method, path } = callOf(cases, known);
        const answer = await ask(target, { method: otherMethod(route), path });
        assertRefused(answer, 405, 'method_not_allowed');
        assert.ok(String(answer.headers['allow']).includes(method), `allow: ${answer.headers['allow']}`);
      };
  }
}

/** A method that the path of a route does not take. */
function otherMethod(route: string): Call['method'] {
  const path = route.split(' ')[1];
  const taken = ROUTES.map((each) => each.route.split(' ')).filter((each) => each[1] === path);
  return (['DELETE', 'POST'] as const).find((method) => !taken.some(([each]) => each === method))!;
}

function assertAnswered(answer: Answer, { route, refused, check }: RouteCases, known: Known): void {
  assertOffered(answer, route);
  const refusal = refused?.(known);
  if (refusal !== undefined) {
    assertRefused(answer, ...refusal);
    return;
  }
  assert.equal(answer.status, 200, `HTTP ${answer.status}: ${excerpt(answer.text)}`);
  check(answer, known);
}

/** @throws NotOffered */
function assertOffered(answer: Answer, route: string): void {
  if (answer.status === 200) return;
  let code: string;
  try {
    code = codeOf(answer);
  } catch {
    return; // the caller names the status and the body
  }
  const reason = NOT_OFFERED[code] ?? (code === 'not_found' ? OPTIONAL_ROUTES[route] : undefined);
  if (reason !== undefined) throw new NotOffered(reason);
}

/** @param code must be the code of the refusal, in APIs whose refusals have one. */
function assertRefused(answer: Answer, status: number, code: string): void {
  assert.equal(answer.status, status, `HTTP ${answer.status} instead of ${status}: ${excerpt(answer.text)}`);
  assert.ok(['', code].includes(codeOf(answer)), `the code is ${codeOf(answer)} instead of ${code}`);
}

/** The routes that a description of the API has, as {@link RouteCases} names them. */
export const routesOf = (description: { readonly paths: Readonly<Record<string, object>> }): string[] =>
  Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  );

/** The deployment's own routes without a case; none where it does not show its description. */
async function routesWithoutCase(target: Target): Promise<string[]> {
  const answer = await ask(target, { method: 'GET', path: '/docs/json' });
  if (answer.status !== 200) return [];
  const known = new Set(ROUTES.map(({ route }) => route));
  return routesOf(objectOf(answer) as { paths: Record<string, object> }).filter((route) => !known.has(route));
}
