// Runs exported files in onnxruntime-web (WebAssembly): node run_web.mjs NODE_MODULES_PARENT JOBS.json. See run_files.py.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createRequire } from "node:module";

const [, , directory, jobs] = process.argv;
const ort = createRequire(join(directory, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;

function read({ shape, type, data }) {
  const { buffer, byteOffset, byteLength } = readFileSync(data);
  const bytes = buffer.slice(byteOffset, byteOffset + byteLength);
  return new ort.Tensor(type, type === "int64" ? new BigInt64Array(bytes) : new Float32Array(bytes), shape);
}

const answers = [];
for (const [n, { file, inputs }] of JSON.parse(readFileSync(jobs)).entries()) {
  try {
    const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
    const outputs = await session.run(Object.fromEntries(Object.entries(inputs).map(([name, value]) => [name, read(value)])));
    answers.push(session.outputNames.map((name, i) => {
      const data = join(dirname(jobs), `onnxruntime-web.${n}.${i}.raw`);
      writeFileSync(data, outputs[name].data);
      return { shape: outputs[name].dims, data };
    }));
  } catch (error) {
    answers.push({ error: String(error) });
  }
}
writeFileSync(`${jobs}.onnxruntime-web`, JSON.stringify(answers));
