// Bindings of what runs llama.cpp's own graphs: Generator, BatchGenerator, decode_log_probs, Scorer,
// ContinuationScorer, ImatrixCollector.
#include "engine/batch_generator.h"
#include "engine/continuations.h"
#include "engine/generate.h"
#include "engine/imatrix.h"
#include "engine/scorer.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"

namespace ggtune {

void bind_generation(py::module_ & m) {
    py::class_<Generator>(m, "Generator")
        .def(py::init([](const std::shared_ptr<Model> & model, const IntArray & prompt,
                         const std::shared_ptr<Adapter> & adapter, int context, int threads, float temperature,
                         int top_k, float top_p, uint32_t seed) {
                 const std::vector<int32_t> tokens = to_vector(prompt);
                 const py::gil_scoped_release release;  // model and adapter are held by the caller's arguments
                 return std::make_unique<Generator>(*model, tokens, adapter.get(), context, threads,
                                                    Sampling{temperature, top_k, top_p, seed});
             }),
             py::arg("model"), py::arg("prompt"), py::kw_only(), py::arg("adapter") = nullptr, py::arg("context") = 0,
             py::arg("threads") = 1, py::arg("temperature") = 0.0f, py::arg("top_k") = 40, py::arg("top_p") = 0.95f,
             py::arg("seed") = 0, py::keep_alive<1, 2>(), py::keep_alive<1, 4>())
        .def(
            "restart",
            [](Generator & generator, const IntArray & prompt) {
                const std::vector<int32_t> tokens = to_vector(prompt);
                const py::gil_scoped_release release;  // one generator is used by one thread; the tokens are a copy
                return generator.restart(tokens);
            },
            py::arg("prompt"))
        .def("__iter__", [](py::object self) { return self; })
        .def("__next__", [](Generator & generator) {
            std::optional<int32_t> token;
            {
                const py::gil_scoped_release release;  // one generator is used by one thread
                token = generator.next();
            }
            if (!token) {
                throw py::stop_iteration();
            }
            return *token;
        });

    py::class_<BatchGenerator>(m, "BatchGenerator")
        .def(py::init([](const std::shared_ptr<Model> & model,
                         const std::vector<std::pair<std::string, float>> & adapters,
                         const std::shared_ptr<Adapter> & live, const IntArray & prefix, int64_t n_slots,
                         int64_t context, int threads) {
                 const std::vector<int32_t> tokens = to_vector(prefix);
                 const py::gil_scoped_release release;  // model and adapter are held by the caller's arguments
                 return std::make_unique<BatchGenerator>(*model, adapters, live.get(), tokens,
                                                         BatchGenerator::Options{n_slots, context, threads});
             }),
             py::arg("model"), py::arg("adapters") = std::vector<std::pair<std::string, float>>(), py::kw_only(),
             py::arg("adapter") = nullptr, py::arg("prefix") = std::vector<int32_t>(), py::arg("n_slots"),
             py::arg("context"), py::arg("threads") = 1, py::keep_alive<1, 2>(), py::keep_alive<1, 4>())
        .def(
            "add",
            [](BatchGenerator & generator, const IntArray & prompt, int64_t max_tokens, float temperature, int top_k,
               float top_p, uint32_t seed) {
                generator.add(to_vector(prompt), max_tokens, Sampling{temperature, top_k, top_p, seed});
            },
            py::arg("prompt"), py::kw_only(), py::arg("max_tokens"), py::arg("temperature") = 0.0f,
            py::arg("top_k") = 40, py::arg("top_p") = 0.95f, py::arg("seed") = 0)
        .def("step",
             [](BatchGenerator & generator) {
                 std::vector<BatchGenerator::Step> steps;
                 {
                     const py::gil_scoped_release release;  // one generator is used by one thread
                     steps = generator.step();
                 }
                 py::list result;
                 for (const BatchGenerator::Step & step : steps) {
                     result.append(py::make_tuple(step.prompt, step.token, step.at_end));
                 }
                 return result;
             })
        .def("end", &BatchGenerator::end, py::arg("prompt"));

    m.def(
        "decode_log_probs",
        [](Model & model, const IntArray & tokens, const std::optional<std::string> & adapter_path, int threads) {
            const std::vector<int32_t> list = to_vector(tokens);
            std::vector<float> log_probs;
            {
                const py::gil_scoped_release release;  // the tokens are a copy
                log_probs = decode_log_probs(model, list, adapter_path.value_or(""), threads);
            }
            return to_array(log_probs);
        },
        py::arg("model"), py::arg("tokens"), py::kw_only(), py::arg("adapter_path") = py::none(),
        py::arg("threads") = 1);

    py::class_<Scorer>(m, "Scorer")
        .def(py::init([](const std::shared_ptr<Model> & model,
                         const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
                         int64_t n_sequences, int threads) {
                 const py::gil_scoped_release release;  // the model is held by the caller's arguments
                 return std::make_unique<Scorer>(*model, adapters, n_tokens, n_sequences, threads);
             }),
             py::arg("model"), py::arg("adapters") = std::vector<std::pair<std::string, float>>(), py::kw_only(),
             py::arg("n_tokens"), py::arg("n_sequences"), py::arg("threads") = 1, py::keep_alive<1, 2>())
        .def(
            "logits",
            [](Scorer & scorer, const IntArray & tokens, const IntArray & sequences,
               const py::array_t<bool, py::array::c_style | py::array::forcecast> & outputs) {
                const std::vector<int32_t> ids = to_vector(tokens);
                const std::vector<int32_t> sequence_of = to_vector(sequences);
                const std::vector<uint8_t> wanted(outputs.data(), outputs.data() + outputs.size());
                const auto n_rows = static_cast<py::ssize_t>(std::count(wanted.begin(), wanted.end(), 1));
                py::array_t<float> result({n_rows, static_cast<py::ssize_t>(scorer.n_vocab())});
                float * to = result.mutable_data();
                {
                    const py::gil_scoped_release release;  // one scorer is used by one thread; the result is its own
                    scorer.logits(ids, sequence_of, wanted, to);
                }
                return result;
            },
            py::arg("tokens"), py::arg("sequences"), py::arg("outputs"));

    py::class_<ContinuationScorer>(m, "ContinuationScorer")
        .def(py::init([](const std::shared_ptr<Model> & model,
                         const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
                         int64_t n_sequences, int threads) {
                 const py::gil_scoped_release release;  // the model is held by the caller's arguments
                 return std::make_unique<ContinuationScorer>(*model, adapters, n_tokens, n_sequences, threads);
             }),
             py::arg("model"), py::arg("adapters") = std::vector<std::pair<std::string, float>>(), py::kw_only(),
             py::arg("n_tokens"), py::arg("n_sequences"), py::arg("threads") = 1, py::keep_alive<1, 2>())
        .def(
            "log_probs",
            [](ContinuationScorer & scorer,
               const std::vector<std::pair<std::vector<int32_t>, std::vector<std::vector<int32_t>>>> & texts) {
                std::vector<std::vector<std::vector<float>>> found;
                {
                    const py::gil_scoped_release release;  // one scorer is used by one thread; the texts are a copy
                    std::vector<Continuations> all;
                    for (const auto & [prefix, ends] : texts) {
                        all.push_back({prefix, ends});
                    }
                    found = scorer.log_probs(all);
                }
                py::list result;
                for (const auto & ends : found) {
                    py::list arrays;
                    for (const std::vector<float> & log_probs : ends) {
                        arrays.append(to_array(log_probs));
                    }
                    result.append(arrays);
                }
                return result;
            },
            py::arg("texts"));

    py::class_<ImatrixCollector>(m, "ImatrixCollector")
        .def(py::init([](const std::shared_ptr<Model> & model, int context, int threads, bool process_output) {
                 const py::gil_scoped_release release;  // the model is held by the caller's argument
                 return std::make_unique<ImatrixCollector>(*model, context, threads, process_output);
             }),
             py::arg("model"), py::kw_only(), py::arg("context"), py::arg("threads") = 1,
             py::arg("process_output") = false, py::keep_alive<1, 2>())
        .def("add",
             [](ImatrixCollector & collector, const IntArray & tokens) {
                 const std::vector<int32_t> list = to_vector(tokens);
                 const py::gil_scoped_release release;  // one collector is used by one thread
                 collector.add(list);
             })
        .def("entries", [](const ImatrixCollector & collector) {
            py::dict entries;
            for (const auto & [name, entry] : collector.entries()) {
                const auto n_mat = static_cast<py::ssize_t>(entry.counts.size());
                FloatArray sums({n_mat, static_cast<py::ssize_t>(entry.n_in)});
                std::copy(entry.sums.begin(), entry.sums.end(), sums.mutable_data());
                FloatArray counts(n_mat);
                std::copy(entry.counts.begin(), entry.counts.end(), counts.mutable_data());
                entries[name.c_str()] = py::make_tuple(sums, counts);
            }
            return entries;
        });
}

}  // namespace ggtune
