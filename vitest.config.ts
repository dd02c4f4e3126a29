import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // One process per file: the engine's native library keeps per-process state.
    pool: 'forks',
    // ONNX Runtime must be told before it is loaded, by whatever loads it (services/lib/engine/ort-api.ts).
    env: { ORT_DISABLE_TELEMETRY: '1' },
    // The machine's cores are the engine's as well; integration tests start real services.
    maxWorkers: 2,
    testTimeout: 60_000,
    // Polling ends with the condition; the limit only catches tests that hang.
    expect: { poll: { timeout: 30_000 } },
    hookTimeout: 120_000,
  },
});
