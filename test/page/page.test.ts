/**
 * The operator page in a real browser, on a real system with the model that ships: what it shows of workers, hand-overs
 * and requests, its playground, and that it can be used by keyboard, in the dark, and without any other host.
 *
 *   PICTURES=docs npx vitest run test/page   takes the pictures of docs/operator-page.md
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Browser, BrowserContextOptions, Locator, Page } from 'playwright-core';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { SAMPLE_REPOSITORY } from '../../services/lib/process/package-root.ts';
import { SAMPLE, SAMPLE_BODY, SAMPLE_REPO } from '../../services/sample.ts';
import type { RunningSystem } from '../../services/supervisor.ts';
import { bringUp, loadUpConfig } from '../../services/up.ts';
import { keyEntry } from '../support/api-keys.ts';
import { launchChromium } from '../support/chromium.ts';

/** A machine that is busy takes long to load a model, and to draw a page. */
const LIMIT = 600_000;
/** Folder that pictures go to; undefined takes none. */
const PICTURES = process.env['PICTURES'];
const [KEY, EDITORS_KEY] = ['operator-of-this-test', 'editor-of-this-test'];
const KEY_BEYOND_ASCII = 'schlüssel-für-10€';

let dir: string;
let system: RunningSystem;
let browser: Browser;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-page-'));
  const keys = join(dir, 'keys.json');
  const entries = [
    keyEntry(KEY, 'default', { access: 'admin' }),
    keyEntry(KEY_BEYOND_ASCII, 'default', { access: 'admin' }),
    keyEntry(EDITORS_KEY, 'default', { access: 'complete' }),
  ];
  await writeFile(keys, JSON.stringify(entries));
  const flags = {
    port: 0,
    data: dir,
    store: `lmdb:${join(dir, 'store')}`,
    logLevel: 'warn',
    index: [SAMPLE_REPOSITORY],
    retrievalBudgetMs: 60_000,
    targetTtftMs: 60_000,
    apiKeysFile: keys,
    adminPage: true,
  };
  browser = await launchChromium();
  system = await bringUp(loadUpConfig(flags), new AbortController().signal);
}, LIMIT);
afterAll(async () => {
  await browser?.close();
  await system?.close();
  await rm(dir, { recursive: true, force: true });
}, LIMIT);

/** Opens the page in a context of its own, and collects what a browser reports: no test may cause any of it. */
async function open(options: BrowserContextOptions = {}): Promise<Page> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  onTestFinished(() => context.close());
  context.setDefaultTimeout(LIMIT / 5);
  const page = await context.newPage();
  const reported: string[] = [];
  page.on('console', (message) => {
    // What the page says of a key or a gateway, the browser says once more.
    const isSaid = /status of 40[13]|net::ERR_/.test(message.text());
    if (message.type() === 'error' && !isSaid) reported.push(message.text());
  });
  page.on('pageerror', (error) => reported.push(String(error)));
  onTestFinished(() => expect(reported).toEqual([]));
  await page.goto(`${system.url}/admin`);
  return page;
}

async function unlock(page: Page, key = KEY): Promise<void> {
  await page.getByLabel('Key').fill(key);
  await page.getByRole('button', { name: 'Open' }).click();
}

/** Opens the page with its key. */
async function operate(options?: BrowserContextOptions): Promise<Page> {
  const page = await open(options);
  await unlock(page);
  await page.getByRole('status').first().filter({ hasText: 'live' }).waitFor();
  return page;
}

const view = (page: Page, name: string) => page.getByRole('region', { name });
const go = (page: Page, name: string) => page.getByRole('navigation').getByRole('link', { name }).click();

async function completion(more: object = {}): Promise<{ id: string; choices: { text: string }[] }> {
  const response = await fetch(`${system.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${EDITORS_KEY}` },
    body: JSON.stringify({ ...SAMPLE_BODY, rag: { repo: SAMPLE_REPO, path: SAMPLE.path }, ...more }),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as { id: string; choices: { text: string }[] };
}

/** The parts of a text, in one line. */
const textOf = async (locator: Locator) => (await locator.allInnerTexts()).join(' ').replace(/\s+/g, ' ');

test('a key that is not an operator’s is refused, in words that say which one is needed', {
  timeout: LIMIT,
}, async () => {
  const page = await open();
  await unlock(page, EDITORS_KEY);
  await page.getByText('"access": "admin"', { exact: false }).nth(1).waitFor();
  expect(await textOf(page.getByRole('main'))).toContain('GET /admin/api/live');
  await unlock(page);
  await view(page, 'Workers').waitFor();
});

test('a key of any characters opens the page, also when it is loaded again', { timeout: LIMIT }, async () => {
  const page = await open();
  await unlock(page, KEY_BEYOND_ASCII);
  const live = page.getByRole('status').first().filter({ hasText: 'live' });
  await live.waitFor();
  await page.reload();
  await live.waitFor();
});

test('a key that is forgotten leaves nothing of it on the page or in the tab, and another one opens it', {
  timeout: LIMIT,
}, async () => {
  const page = await operate();
  await go(page, 'Index');
  await view(page, 'Index').getByRole('table').waitFor();
  await page.getByRole('button', { name: 'Forget the key' }).click();
  await page.getByLabel('Key').waitFor();
  expect(await page.getByRole('table').count()).toBe(0);
  expect(await page.getByRole('button', { name: 'Forget the key' }).count()).toBe(0);
  expect(await page.evaluate('sessionStorage.length')).toBe(0);
  await unlock(page, KEY_BEYOND_ASCII);
  await view(page, 'Index').getByRole('table').waitFor();
});

test('workers are there with their slots, and a hand-over moves along its edge', { timeout: LIMIT }, async () => {
  const page = await operate();
  const workers = view(page, 'Workers');
  const rows = workers.getByRole('table').getByRole('row');
  await expect.poll(() => rows.count(), { timeout: LIMIT / 5 }).toBe(3); // the head, prefill and decode
  const addresses = system.processes.filter(({ name }) => /prefill|decode/.test(name)).map(({ address }) => address);
  for (const address of addresses) expect(await textOf(workers)).toContain(address);
  const map = workers.getByRole('img').first();
  const done = async () => Number(/(\d+) done/.exec((await map.getAttribute('aria-label')) ?? '')?.[1] ?? 0);
  const before = await done();
  const moved = page.evaluate<string>(`new Promise((resolve) => {
    const look = () => {
      const dot = document.querySelector('svg .edge circle');
      if (dot) resolve(getComputedStyle(dot).animationName);
      else requestAnimationFrame(look);
    };
    look();
  })`);
  await completion();
  await expect.poll(done, { timeout: LIMIT / 5 }).toBeGreaterThan(before);
  expect(await moved).toBe('fly');
  expect(await textOf(workers)).toMatch(/KV in flight/);
  expect(await workers.locator('canvas').count()).toBe(2);
  if (PICTURES !== undefined) await underLoad();
  await takePicture(page, 'operator-page', 690);
});

/** Some load, and a few seconds of it in the charts. */
async function underLoad(): Promise<void> {
  const untilMs = performance.now() + 12_000;
  while (performance.now() < untilMs) {
    await Promise.all(Array.from({ length: 3 }, () => completion({ max_tokens: 16, stop: [], ignore_eos: true })));
  }
}

async function takePicture(page: Page, name: string, height: number): Promise<void> {
  if (PICTURES === undefined) return;
  await page.setViewportSize({ width: 1180, height });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

test('a request appears with its waterfall, and without a word of its prompt', { timeout: LIMIT }, async () => {
  const page = await operate();
  await go(page, 'Requests');
  const { id } = await completion({ max_tokens: 5, stop: [] });
  const name = id.replace('cmpl-', '');
  const row = view(page, 'Requests')
    .getByRole('row')
    .filter({ hasText: name.slice(0, 8) })
    .first();
  await row.waitFor();
  expect(await textOf(row)).toContain('/v1/completions default shop 200 compressed, 10 chunks');
  await row.getByRole('button', { name: `Timeline of ${name}` }).click();
  const waterfall = view(page, 'Requests').locator('.waterfall');
  const text = await textOf(waterfall);
  for (const step of ['admit', 'retrieve chunks', 'build the prompt', 'wait for workers', 'to the first token']) {
    expect(text).toContain(step);
  }
  expect(text).toMatch(/call of prefill \S+:\d+/);
  expect(text).toMatch(/call of decode \S+:\d+ [\s\S]*joined at/);
  expect(text).toMatch(/By the workers' own clocks: .*handoff/);
  const bars = await Promise.all((await waterfall.locator('.bar').all()).map((bar) => bar.boundingBox()));
  expect(bars.length).toBeGreaterThan(7);
  expect(Math.max(...bars.map((box) => box?.width ?? 0))).toBeGreaterThan(20);
  expect(await page.content()).not.toContain('find_coupon');
  await takePicture(page, 'operator-page-request', 640);
  await view(page, 'Requests').getByRole('searchbox').fill('nothing is called so');
  await page.getByText('No request is like that.').waitFor();
});

test('the index tells version, freshness, and why a file is not in it', { timeout: LIMIT }, async () => {
  const page = await operate();
  await go(page, 'Index');
  const row = view(page, 'Index').getByRole('row').filter({ hasText: 'shop' });
  await row.waitFor();
  expect(await textOf(row)).toMatch(/^shop default [0-9a-f]{16} .* ago fresh \d+ \d+ python \d+/);
  await row.getByRole('button', { name: 'Files that shop leaves out' }).click();
  await view(page, 'Index').locator('.left-out').waitFor();
});

test('the playground completes one cursor in three modes, side by side', { timeout: LIMIT }, async () => {
  const page = await operate();
  await go(page, 'Playground');
  await page.getByRole('button', { name: 'Take the sample' }).click();
  await page.getByLabel('Runs of each').fill('2');
  await page.getByRole('button', { name: 'Complete in three modes' }).click();
  await view(page, 'Playground').getByText('done', { exact: true }).waitFor();
  const arms = view(page, 'Playground').getByRole('article');
  expect(await arms.count()).toBe(3);
  const [off, asText, compressed] = await Promise.all([0, 1, 2].map((i) => textOf(arms.nth(i))));
  expect(off).toMatch(/^Without context .* TPOT .*0 chunks/);
  const ttft = /TTFT ([\d.]+) ms \(([\d.]+) ms to ([\d.]+) ms\), median of 2 runs/.exec(off!);
  const [middle, low, high] = ttft!.slice(1).map(Number) as [number, number, number];
  // Each of the three is rounded: to whole ms from 100 ms on.
  expect(Math.abs(middle - (low + high) / 2)).toBeLessThanOrEqual(1);
  expect(asText).toMatch(/^Chunks as text .*Prompt tokens \d+ Output tokens \d+ .*\d+ chunks shop\/.*:\d+-\d+/);
  expect(compressed).toMatch(/Prompt tokens \d+, 10 of them soft .*10 chunks/);
  // The model that ships is right with compressed context, and not without it.
  const answer = (i: number) => arms.nth(i).locator('.answer').textContent();
  expect(await answer(2)).toBe(SAMPLE.rest);
  expect(await answer(0)).not.toBe(SAMPLE.rest);
  await takePicture(page, 'operator-page-playground', 900);
});

test('all of it is reached and used by keyboard, and everything has a name', { timeout: LIMIT }, async () => {
  const page = await open();
  const focused = () =>
    page.evaluate<string>(`(({ tagName, textContent }) => tagName + ' ' + textContent.trim())(document.activeElement)`);
  const tabTo = async (wanted: string) => {
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press('Tab');
      if ((await focused()) === wanted) return;
    }
    throw new Error(`Tab does not lead to ${wanted}; the last stop was ${await focused()}`);
  };
  await page.getByLabel('Key').waitFor();
  await page.getByLabel('Key').focus();
  await page.keyboard.type(KEY);
  await page.keyboard.press('Enter');
  await view(page, 'Workers').waitFor();
  await completion();
  await page.evaluate('document.activeElement.blur()');
  await tabTo('BUTTON Skip to content');
  await page.keyboard.press('Enter');
  expect(await page.locator('#content:focus').count()).toBe(1);
  await page.getByRole('link', { name: 'Workers' }).focus();
  await tabTo('A Requests');
  await page.keyboard.press('Enter');
  const first = view(page, 'Requests').getByRole('button').first();
  await first.waitFor();
  await tabTo(`BUTTON ${await textOf(first)}`);
  await page.keyboard.press('Enter');
  await view(page, 'Requests').locator('.waterfall').waitFor();
  // The button that was pressed: a request that has come meanwhile would be the first one.
  expect(await page.locator(':focus').getAttribute('aria-expanded')).toBe('true');
  await page.getByRole('link', { name: 'Playground' }).focus();
  await page.keyboard.press('Enter');
  await tabTo('BUTTON Take the sample');
  await page.keyboard.press('Enter');
  await page.getByLabel('Runs of each').fill('1');
  await page.getByRole('button', { name: 'Complete in three modes' }).focus();
  await page.keyboard.press('Space');
  await view(page, 'Playground').getByText('done', { exact: true }).waitFor();
  // What has neither a name nor a label cannot be told apart by those who do not see it.
  const nameless = await page.evaluate<string[]>(`
    [...document.querySelectorAll('button, a, input, select, textarea, meter, [role=img]')]
      .filter((element) => {
        const name = element.getAttribute('aria-label') ?? element.textContent.trim();
        return name === '' && !element.labels?.length;
      })
      .map(({ outerHTML }) => outerHTML)`);
  expect(nameless).toEqual([]);
});

test('it is light or dark as the browser is, until the reader chooses', { timeout: LIMIT }, async () => {
  const colours = (page: Page) =>
    page.evaluate<string[]>(`(({ backgroundColor, color }) => [backgroundColor, color])(
      getComputedStyle(document.documentElement))`);
  const light = await operate({ colorScheme: 'light' });
  const dark = await operate({ colorScheme: 'dark' });
  const [ofLight, ofDark] = [await colours(light), await colours(dark)];
  expect(ofLight).toEqual(['rgb(255, 255, 255)', 'rgb(26, 31, 38)']);
  expect(ofDark).toEqual(['rgb(20, 24, 29)', 'rgb(230, 234, 240)']);
  await light.getByRole('button', { name: 'Dark colours' }).click();
  expect(await colours(light)).toEqual(ofDark);
  await light.reload();
  await light.getByRole('button', { name: 'Light colours' }).waitFor();
  expect(await colours(light)).toEqual(ofDark);
});

test('it asks no other host for anything, and its policy lets it ask none', { timeout: LIMIT }, async () => {
  const context = await browser.newContext();
  onTestFinished(() => context.close());
  const page = await context.newPage();
  const asked = new Set<string>();
  page.on('request', (request) => asked.add(new URL(request.url()).origin));
  const answer = await page.goto(`${system.url}/admin/`);
  await unlock(page);
  await view(page, 'Workers').waitFor();
  expect([...asked]).toEqual([system.url]);
  expect(answer?.headers()['content-security-policy']).toContain("default-src 'none'; script-src 'self'");
  const blocked = await page.evaluate<string>(`new Promise((resolve) => {
    document.addEventListener('securitypolicyviolation', ({ violatedDirective }) => resolve(violatedDirective));
    fetch('http://127.0.0.1:9/').catch(() => {});
  })`);
  expect(blocked).toBe('connect-src');
});

test('a gateway that dies is said, and the page goes on with the next one', { timeout: LIMIT }, async () => {
  const page = await operate();
  await go(page, 'Requests');
  const gateway = system.processes.find(({ name }) => name.startsWith('gateway'))!;
  const status = page.getByRole('status').first();
  process.kill(gateway.pid!, 'SIGKILL');
  await status.filter({ hasText: /connect/ }).waitFor();
  await status.filter({ hasText: 'live' }).waitFor();
  expect(await page.getByRole('link', { name: 'Requests' }).getAttribute('aria-current')).toBe('page');
});
